"""Megatron-Core models from a `ModelConfig`, and model directories on disk.

A model directory holds
    model.json    the ModelConfig
    weights/      Megatron's torch_dist checkpoint: {"model": GPTModel.sharded_state_dict(), ...}
    tokenizer/    the files of a Hugging Face tokenizer (optional)
A training checkpoint is a model directory too, whose weights/ holds the optimizer as well.
"""

from __future__ import annotations

import queue
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.functional import silu

from bgkd_megatron.megatron import parallel
from bgkd_megatron.megatron.errors import ConfigError, RankError, RunError
from bgkd_megatron.megatron.layer_spec import block_spec
from bgkd_megatron.megatron.model_config import MODEL_FILE, TOKENIZER_DIR, WEIGHTS_DIR, ModelConfig

__all__ = [
    "LAYOUT",
    "build_model",
    "load_weights",
    "read_weights",
    "save_model_dir",
    "write_model_files",
]

LAYOUT = "weight_layout"
"""Where the weights hold ModelConfig.weight_layout()"""


def transformer_config(
    config: ModelConfig, *, dtype: torch.dtype, sequence_parallel: bool, initialize: bool
) -> TransformerConfig:
    """Megatron's configuration of `config` on the current process groups."""
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        ffn_hidden_size=config.ffn_hidden_size,
        kv_channels=config.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_epsilon,
        qk_layernorm=config.qk_layernorm,
        gated_linear_unit=True,
        activation_func=silu,
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        sequence_parallel=sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Fresh weights are drawn on the CPU for the whole model and then cut: the same model for
        # every tensor-parallel size that pads the vocabulary to the same length.
        use_cpu_initialization=True,
        perform_initialization=initialize,
        # Losses and gradients are sums over tokens, divided once by the number of tokens of the
        # global batch: the result depends on neither ranks nor microbatches.
        calculate_per_token_loss=True,
    )


def build_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    sequence_parallel: bool = False,
    seed: int | None = None,
) -> GPTModel:
    """A GPTModel on this rank's device, cut for the current process groups.

    dtype: of the parameters, float32 or bfloat16.  seed: of fresh weights; without it they are left
    unset, for `load_weights`.  The output stays vocab-parallel: [s, b, padded_vocab_size / tp].
    """
    megatron_config = transformer_config(
        config,
        dtype=dtype,
        sequence_parallel=sequence_parallel,
        initialize=seed is not None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        model = GPTModel(
            megatron_config,
            block_spec(megatron_config),
            vocab_size=config.padded_vocab_size(megatron_config.tensor_model_parallel_size),
            max_sequence_length=config.max_position_embeddings,
            share_embeddings_and_output_weights=config.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=config.rope_base,
        )
    _zero_padding(model, config.vocab_size)
    return model.to(parallel.device())


def load_weights(model: GPTModel, model_dir: str | Path) -> None:
    """Load DIR/weights into `model`, from any tensor-parallel size into the current one.

    Collective: call it on all ranks.  Raises FileNotFoundError when there is no checkpoint, and
    ConfigError when it is damaged or does not fit the model.
    """
    path = Path(model_dir) / WEIGHTS_DIR
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: {model_dir} is not a model directory")
    loaded = read_weights({"model": model.sharded_state_dict()}, Path(model_dir))
    _check_unchanged(Path(model_dir), loaded.get(LAYOUT))
    model.load_state_dict(loaded["model"])


def _check_unchanged(root: Path, stored: dict[str, Any] | None) -> None:
    """Not every edit of model.json shows in a shape: rows of the vocabulary are cut or filled up to
    those of the layout, and with tied embeddings nobody asks for the output layer."""
    if stored is None:
        return  # weights that were saved before their architecture was
    now = ModelConfig.read(root).weight_layout()
    if changed := [name for name in now if now[name] != stored.get(name)]:
        changes = ", ".join(f"{n} is {now[n]!r}, was {stored.get(n)!r}" for n in changed)
        raise ConfigError(f"{root / MODEL_FILE} is not that of the weights ({changes}): restore it")


def read_weights(request: dict[str, Any], root: Path) -> dict[str, Any]:
    """What `request` asks for, from Megatron's checkpoint in ROOT/weights.  Collective.

    Raises ConfigError when it is damaged or holds something else.
    """
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(request, str(root / WEIGHTS_DIR))
    except (Exception, CheckpointException) as error:  # the latter is torch's, no Exception
        reason = str(error).strip().rpartition("\n")[2]
        raise ConfigError(f"{root} cannot be read ({type(error).__name__}: {reason})") from error
    return loaded


@torch.no_grad()
def _zero_padding(model: GPTModel, vocab_size: int) -> None:
    """Rows beyond the vocabulary start as 0, and stay 0 when a checkpoint made for another layout
    does not have them.  Unset memory must not stay there: the gradient of such a logit is 0, but
    0 * NaN would still reach the hidden states."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for name, weight in model.named_parameters():
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            first = max(0, vocab_size - rank * weight.shape[0])
            weight[first:].zero_()


def save_model_dir(
    model: GPTModel,
    config: ModelConfig,
    model_dir: str | Path,
    *,
    tokenizer: str | Path | None = None,
) -> None:
    """Write a model directory; `tokenizer` is the folder whose files go to DIR/tokenizer.

    Collective: call it on all ranks.  Raises FileExistsError when DIR already holds a model.
    """
    root = Path(model_dir)
    # One rank looks, before any can have started to write.
    occupied = [(root / WEIGHTS_DIR).exists()]
    dist.broadcast_object_list(occupied, src=0)
    if occupied[0]:
        raise FileExistsError(f"{root} already holds a model: remove it or choose another folder")
    state = {"model": model.sharded_state_dict(), LAYOUT: config.weight_layout()}
    save_weights(state, root)
    write_model_files(config, root, tokenizer)


def save_weights(state: dict[str, Any], root: Path) -> None:
    """Write Megatron's torch_dist checkpoint of `state` to ROOT/weights.  Collective.

    Raises RunError on all ranks when one of them cannot write its part, and RankError on a rank
    that fails alone.
    """
    # A synchronous save writes in threads of this process, but Megatron 0.19 passes their results
    # through a helper process: seconds to start, and after a kill -9 of its rank it lives on.
    filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()
    try:
        if dist.get_rank() == 0:
            (root / WEIGHTS_DIR).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(state, str(root / WEIGHTS_DIR))
    except CheckpointException as error:  # torch's, raised on all ranks
        raise RunError(
            f"{root} cannot be written; the rank that failed has logged the cause (Local worker "
            "... encountered an error). Earlier checkpoints are as they were"
        ) from error
    except OSError as error:
        raise RankError(f"{root} cannot be written ({error})") from error


def write_model_files(config: ModelConfig, root: Path, tokenizer: str | Path | None) -> None:
    """Write model.json and the tokenizer, on rank 0; the others wait.

    model.json comes last: a folder without it is no model directory.
    """
    if dist.get_rank() == 0:
        if tokenizer is not None:
            shutil.copytree(tokenizer, root / TOKENIZER_DIR)
        config.write(root)
    dist.barrier()
