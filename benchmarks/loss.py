"""Distillation losses side by side: ours, eager PyTorch, nvidia-modelopt, liger-kernel.

    python benchmarks/loss.py                       # the whole comparison
    python benchmarks/loss.py --dtype fp32 --vocab 151936 --variants ours_kl,modelopt
    python benchmarks/loss.py --markdown table.md --json table.json
    python benchmarks/loss.py --device cuda --tokens 4096 --vocab 128256 --dtype bf16

On a GPU Transformer Engine is compared, too, and the L2 cache is flushed before every time (nothing
has been measured on one yet); without a GPU --device cuda prints the static roofline instead.
Run it on a machine that does nothing else.  `pip install .[bench]` installs the peers; one that is
missing becomes a row with the reason.  Forward and backward of the mean loss of N tokens, measured
as loss_bench/report.py says below every table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loss_bench import report, roofline
from loss_bench.comparison import measure, started_workers
from loss_bench.measure import machine_facts
from loss_bench.problem import DTYPES, Setting
from loss_bench.variants import VARIANTS
from rich.console import Console

from bgkd_megatron import ops

# Tensors of at least 32 MiB in bf16 and 64 MiB in fp32: larger than most caches and, like those of
# real batches, of the size that glibc's malloc gives back to the system when they are freed.
# A GPU's L2 cache is larger, and it moves a tensor a hundred times as fast.
_DEFAULT_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
_TOKENS_MULTIPLE = 64
_QUIET_LOAD = 0.5
_REPETITIONS = {"cpu": 5, "cuda": 30}
_TABLE_WIDTH = 140


def main() -> None:
    options = _parse()
    console = Console()
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    torch.set_num_threads(options.threads)
    device = options.device
    has_device = device == "cpu" or torch.cuda.is_available()
    machine = machine_facts(device if has_device else "cpu")
    for line in report.header(machine):
        console.print(line, highlight=False)
    settings = [
        Setting(vocab, options.tokens or _default_tokens(vocab, device), dtype, device)
        for vocab in options.vocab
        for dtype in options.dtype
    ]
    if has_device:
        _measure(options, console, machine, settings)
    else:
        _print_roofline(options, console, machine, settings)


def _measure(
    options: argparse.Namespace, console: Console, machine: dict[str, Any], settings: list[Setting]
) -> None:
    if machine["load_average"] > _QUIET_LOAD:
        console.print(
            f"WARNING: load average {machine['load_average']}: the times below are not reliable",
            style="bold red",
        )
    results = []
    with started_workers(options.variants, options.threads) as (workers, copy):
        for setting in settings:
            with console.status(f"V = {setting.vocab_size:,}, {setting.dtype}"):
                results.append(measure(setting, workers, copy, options.repetitions))
            report.print_result(console, results[-1])
    for line in (*report.notes(options.device), *report.aims(options.device, results)):
        console.print("* " + line, highlight=False)
    if options.json:
        document = {"machine": machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(machine, results))


def _print_roofline(
    options: argparse.Namespace, console: Console, machine: dict[str, Any], settings: list[Setting]
) -> None:
    reason = f"torch {torch.__version__} sees no GPU"
    console.print(f"no GPU here ({reason}): nothing is measured", highlight=False)
    lines = roofline.rooflines(settings, options.variants)
    roofline.print_rooflines(console, lines)
    for line in roofline.notes():
        console.print("* " + line, highlight=False)
    if options.json:
        document = {
            "machine": machine, "measured": False, "reason": reason,
            "gpus": [asdict(gpu) for gpu in roofline.gpus()],
            "rooflines": [asdict(line) for line in lines],
        }  # fmt: skip
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(roofline.markdown(lines))


def _default_tokens(vocab: int, device: str) -> int:
    return math.ceil(_DEFAULT_LOGITS[device] / vocab / _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--tokens", type=_positive, help="N; default: 17 million logits, on a GPU 268 million"
    )
    parser.add_argument("--vocab", type=_list_of(_positive), default=[32768, 151936])
    parser.add_argument("--dtype", type=_list_of(_one_of(DTYPES)), default=["fp32", "bf16"])
    parser.add_argument(
        "--variants", type=_list_of(_one_of(VARIANTS)),
        help=f"default: those for the device, of {','.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("--repetitions", type=_positive, help="default: 5, on a GPU 30")
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.is_available() and "cuda" not in ops.DEVICES:
        parser.error("--device cuda: this build has no CUDA kernels, see CONTRIBUTING.md")
    options.repetitions = options.repetitions or _REPETITIONS[options.device]
    if options.variants is None:
        options.variants = [name for name, v in VARIANTS.items() if options.device in v.devices]
    return options


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _one_of(choices: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
