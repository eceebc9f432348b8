"""Model directories: the weights of a model on disk, and what lies beside them.

A model directory holds
    model.json    the ModelConfig
    weights/      Megatron's torch_dist checkpoint: the sharded_state_dict() of all pieces, ...,
                  and in integrity.json the SHA-256 of each of its files
    tokenizer/    the files of a Hugging Face tokenizer (optional)
A training checkpoint is a model directory too, whose weights/ holds the optimizer as well.
"""

from __future__ import annotations

import queue
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import INTEGRITY_FNAME
from megatron.core.models.gpt import GPTModel
from pydantic import BaseModel, ValidationError
from torch.distributed.checkpoint.api import CheckpointException

from bgkd_megatron import rank_check
from bgkd_megatron.megatron.errors import ConfigError, RunError, writing
from bgkd_megatron.megatron.model_config import MODEL_FILE, TOKENIZER_DIR, WEIGHTS_DIR, ModelConfig
from bgkd_megatron.settings import explain

__all__ = [
    "LAYOUT",
    "load_pieces",
    "load_weights",
    "read_weights",
    "save_model_dir",
    "save_weights",
    "sharded_pieces",
    "write_model_files",
]

LAYOUT = "weight_layout"
"""Where the weights hold ModelConfig.weight_layout()"""


def load_weights(model: Sequence[GPTModel], model_dir: str | Path) -> None:
    """Load DIR/weights into the pieces of `model`, from any layout into the current one.

    Collective: call it on all ranks.  Raises FileNotFoundError when there is no checkpoint, and
    ConfigError when it is damaged or does not fit the model.
    """
    path = Path(model_dir) / WEIGHTS_DIR
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: {model_dir} is not a model directory")
    loaded = read_weights(sharded_pieces(model), Path(model_dir))
    _check_unchanged(Path(model_dir), loaded.get(LAYOUT))
    load_pieces(model, loaded)


def sharded_pieces(model: Sequence[GPTModel]) -> dict[str, Any]:
    """What this rank holds of the model, by piece.  Tensors are named by their place in the model,
    not by that of their piece, so that any other layout can load them."""
    return {name: piece.sharded_state_dict() for name, piece in _named(model)}


def load_pieces(model: Sequence[GPTModel], loaded: dict[str, Any]) -> None:
    """Give the pieces of `model` what was loaded for `sharded_pieces` of it."""
    for name, piece in _named(model):
        piece.load_state_dict(loaded[name])


def _named(model: Sequence[GPTModel]) -> list[tuple[str, GPTModel]]:
    if len(model) == 1:
        return [("model", model[0])]
    return [(f"model{number}", piece) for number, piece in enumerate(model)]


def _check_unchanged(root: Path, stored: dict[str, Any] | None) -> None:
    """Not every edit of model.json shows in a shape: rows of the vocabulary are cut or filled up to
    those of the layout, and with tied embeddings nobody asks for the output layer."""
    if stored is None:
        return  # weights that were saved before their architecture was
    now = ModelConfig.read(root).weight_layout()
    # Weights that were saved before a setting existed have its default.
    then = {name: field.default for name, field in ModelConfig.model_fields.items()} | stored
    if changed := [name for name in now if now[name] != then[name]]:
        changes = ", ".join(f"{n} is {now[n]!r}, was {then[n]!r}" for n in changed)
        raise ConfigError(f"{root / MODEL_FILE} is not that of the weights ({changes}): restore it")


def read_weights(request: dict[str, Any], root: Path) -> dict[str, Any]:
    """What `request` asks for, from Megatron's checkpoint in ROOT/weights.  Collective.

    First rank 0 reads all of it once more than it would need, to compare each file with its hash;
    weights that were saved without hashes are taken as they are.
    Raises ConfigError on all ranks when a file is damaged or missing, and ConfigError when the
    checkpoint holds something else.
    """
    weights = root / WEIGHTS_DIR
    try:
        # A damaged record would raise on rank 0 alone, and leave the others waiting for it.
        has_hashes = rank_check.agreed(
            str(weights),
            lambda: _has_hashes(weights),
            lambda found: {f"the presence of {INTEGRITY_FNAME}": found},
            dist.group.WORLD,
        )
        loaded: dict[str, Any] = dist_checkpointing.load(
            request, str(weights), verify_integrity=has_hashes
        )
    except CheckpointingException as error:  # Megatron's; it may name several files, a line each
        raise ConfigError(f"{root} cannot be read ({explain(error)})") from error
    except (Exception, CheckpointException) as error:  # the latter is torch's, no Exception
        reason = str(error).strip().rpartition("\n")[2]
        raise ConfigError(f"{root} cannot be read ({type(error).__name__}: {reason})") from error
    return loaded


class _Hashes(BaseModel):
    """What Megatron writes into INTEGRITY_FNAME."""

    algorithm: str
    files: dict[str, str]


def _has_hashes(weights: Path) -> bool:
    """Whether the hashes of the files lie beside them.  Raises OSError or ValueError when they are
    there but cannot be read."""
    file = weights / INTEGRITY_FNAME
    if not file.is_file():
        return False
    try:
        _Hashes.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file} is damaged: {explain(error)}") from error
    return True


def save_model_dir(
    model: Sequence[GPTModel],
    config: ModelConfig,
    model_dir: str | Path,
    *,
    tokenizer: str | Path | None = None,
) -> None:
    """Write a model directory; `tokenizer` is the folder whose files go to DIR/tokenizer.

    Collective: call it on all ranks.  Raises FileExistsError when DIR already holds a model, and
    RunError (on all ranks) or RankError when it cannot be written.
    """
    root = Path(model_dir)
    # One rank looks, before any can have started to write.
    occupied = [(root / WEIGHTS_DIR).exists()]
    dist.broadcast_object_list(occupied, src=0)
    if occupied[0]:
        raise FileExistsError(f"{root} already holds a model: remove it or choose another folder")
    state = sharded_pieces(model) | {LAYOUT: config.weight_layout()}
    with writing(root):
        save_weights(state, root)
        write_model_files(config, root, tokenizer)


def save_weights(state: dict[str, Any], root: Path) -> None:
    """Write Megatron's torch_dist checkpoint of `state` to ROOT/weights.  Collective.

    Rank 0 then reads all of it once, in sequence, and records the hash of each file: a disk that
    loses bits is seen when they are loaded.
    Raises RunError on all ranks when one of them cannot write its part, and OSError on a rank that
    fails alone.
    """
    _save_without_helper_process()
    try:
        if dist.get_rank() == 0:
            (root / WEIGHTS_DIR).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(state, str(root / WEIGHTS_DIR), verify_integrity=True)
    except CheckpointException as error:  # torch's, raised on all ranks
        raise RunError(
            f"{root} cannot be written; the rank that failed has logged the cause (Local worker "
            "... encountered an error). Earlier checkpoints are as they were"
        ) from error


def _save_without_helper_process() -> None:
    """Give Megatron the queue that it would else ask a helper process for.

    A synchronous save writes in threads of this process, but Megatron 0.19 passes their results
    through a `multiprocessing.Manager`: seconds to start, and after a kill -9 of its rank it lives
    on.  It has no option for that, so this sets a private name of Megatron.
    """
    filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()


def write_model_files(config: ModelConfig, root: Path, tokenizer: str | Path | None) -> None:
    """Write model.json and the tokenizer, on rank 0; the others wait.

    model.json comes last: a folder without it is no model directory.
    """
    if dist.get_rank() == 0:
        if tokenizer is not None:
            shutil.copytree(tokenizer, root / TOKENIZER_DIR)
        config.write(root)
    dist.barrier()
