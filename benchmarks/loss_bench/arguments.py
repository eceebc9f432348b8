"""The command line that the comparisons share: what to measure where, and where to write it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from bgkd_megatron import ops
from loss_bench.problem import DTYPES, Setting

__all__ = ["list_of", "one_of", "parse", "parser", "settings", "write"]

# Tensors of at least 32 MiB in bf16 and 64 MiB in fp32: larger than most caches and, like those of
# real batches, of the size that glibc's malloc gives back to the system when they are freed.
# A GPU's L2 cache is larger, and it moves a tensor a hundred times as fast.
_DEFAULT_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
_TOKENS_MULTIPLE = 64
_REPETITIONS = {"cpu": 5, "cuda": 30}


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument(
        "--tokens", type=_positive, help="N; default: 17 million logits, on a GPU 268 million"
    )
    made.add_argument("--vocab", type=list_of(_positive), default=[32768, 151936])
    made.add_argument("--dtype", type=list_of(one_of(DTYPES)), default=["fp32", "bf16"])
    made.add_argument("--repetitions", type=_positive, help="default: 5, on a GPU 30")
    made.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    made.add_argument("--json", type=Path, metavar="FILE")
    made.add_argument("--markdown", type=Path, metavar="FILE")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the device's defaults; sets PyTorch's threads."""
    options = made.parse_args()
    if options.device == "cuda" and torch.cuda.is_available() and "cuda" not in ops.DEVICES:
        made.error("--device cuda: this build has no CUDA kernels, see CONTRIBUTING.md")
    options.repetitions = options.repetitions or _REPETITIONS[options.device]
    torch.set_num_threads(options.threads)
    return options


def settings(options: argparse.Namespace) -> list[Setting]:
    device = options.device
    return [
        Setting(vocab, options.tokens or _default_tokens(vocab, device), dtype, device)
        for vocab in options.vocab
        for dtype in options.dtype
    ]


def write(options: argparse.Namespace, document: dict[str, Any], markdown: str) -> None:
    """The results, to the files that the command line names."""
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown)


def _default_tokens(vocab: int, device: str) -> int:
    return math.ceil(_DEFAULT_LOGITS[device] / vocab / _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    def parse_one(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse_one


def list_of(parse_one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse_one(part) for part in text.split(",")]
