"""Export a model directory or a training checkpoint in Hugging Face format.

python -m bgkd_megatron.convert.to_hf --input MODEL_DIR|CHECKPOINT --output HF_DIR [--dtype X]

A checkpoint (RUN/checkpoints/iter_0000040) may come from any tensor-parallel size.  The output
holds config.json, safetensors and the tokenizer: transformers loads it by its path.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from bgkd_megatron import command
from bgkd_megatron.convert.hf_checkpoint import hugging_face_config
from bgkd_megatron.convert.mapping import Weights, converted, to_hugging_face
from bgkd_megatron.convert.output_directory import output_directory
from bgkd_megatron.megatron import cpu_compat
from bgkd_megatron.megatron.model_config import TOKENIZER_DIR, ModelConfig
from bgkd_megatron.tokenizer import copy_tokenizer, load_tokenizer, require_rows

DTYPES = ("float32", "bfloat16", "float16")


def export(model_dir: Path, hf_dir: Path, *, dtype: str = "float32") -> None:
    """Write HF_DIR from the model in `model_dir`; dtype: of the weights that are written.

    Raises OSError (FileNotFoundError, FileExistsError, ...) or ValueError; then nothing is
    written.  On a machine without a GPU it installs cpu_compat, which changes torch for the rest of
    this process.
    """
    config = ModelConfig.read(model_dir)
    with output_directory(hf_dir) as directory:
        tokenizer = load_tokenizer(model_dir / TOKENIZER_DIR)
        require_rows(tokenizer, config.vocab_size)
        copy_tokenizer(model_dir / TOKENIZER_DIR, directory)
        token_ids = {
            name: getattr(tokenizer, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        content = hugging_face_config(config, token_ids)
        content["dtype"] = content["torch_dtype"] = dtype  # transformers 5, and before
        (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        save(_read_weights(config, model_dir), directory, getattr(torch, dtype))


def _read_weights(config: ModelConfig, model_dir: Path) -> Weights:
    cpu_compat.install()
    from bgkd_megatron.megatron.model import build_model
    from bgkd_megatron.megatron.parallel import process_groups
    from bgkd_megatron.megatron.weights import load_weights

    with process_groups():
        model = build_model(config)
        load_weights(model, model_dir)
        return to_hugging_face(dict(model[0].named_parameters()), config)


def save(weights: Weights, directory: Path, dtype: torch.dtype) -> None:
    """Write `weights` as `dtype`.  Raises OSError, and ValueError for one that does not fit."""
    from huggingface_hub import save_torch_state_dict

    tensors = {name: converted(name, weight, dtype).cpu() for name, weight in weights.items()}
    try:
        # Shards of 5 GB with an index, or one file, as transformers itself would write them.
        save_torch_state_dict(tensors, directory)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{directory} cannot be written: {error}") from error
    for file in directory.glob("*.safetensors"):
        # Written as private files; whoever may read the configuration may read the weights.
        shutil.copymode(directory / "config.json", file)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bgkd_megatron.convert.to_hf",
        description="Export a model directory or training checkpoint in Hugging Face format.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="MODEL_DIR|CHECKPOINT")
    parser.add_argument("--output", type=Path, required=True, metavar="HF_DIR")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    options = parser.parse_args(arguments)

    def body() -> str:
        export(options.input, options.output, dtype=options.dtype)
        return f"{options.output}: written; load it with AutoModelForCausalLM.from_pretrained"

    return command.run(body)


if __name__ == "__main__":
    sys.exit(main())
