"""Distillation losses side by side: ours, eager PyTorch, nvidia-modelopt, liger-kernel.

    python benchmarks/loss.py                       # the whole comparison
    python benchmarks/loss.py --dtype fp32 --vocab 151936 --variants ours_kl,modelopt
    python benchmarks/loss.py --markdown table.md --json table.json
    python benchmarks/loss.py --device cuda --tokens 4096 --vocab 128256 --dtype bf16

benchmarks/family.py compares every divergence and weighting with eager PyTorch.

On a GPU Transformer Engine is compared, too, and the L2 cache is flushed before every time (nothing
has been measured on one yet); without a GPU --device cuda prints the static roofline instead.
Run it on a machine that does nothing else.  `pip install .[bench]` installs the peers; one that is
missing becomes a row with the reason.  Forward and backward of the mean loss of N tokens, measured
as loss_bench/report.py says below every table.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from loss_bench import arguments, report, roofline
from loss_bench.comparison import measure, started_workers
from loss_bench.family import FAMILY
from loss_bench.measure import machine_facts
from loss_bench.problem import Setting
from loss_bench.variants import VARIANTS
from rich.console import Console


def main() -> None:
    options = _parse()
    console = report.console()
    has_device = options.device == "cpu" or torch.cuda.is_available()
    machine = machine_facts(options.device if has_device else "cpu")
    for line in report.header(machine):
        console.print(line, highlight=False)
    settings = arguments.settings(options)
    if has_device:
        _measure(options, console, machine, settings)
    else:
        _print_roofline(options, console, machine, settings)


def _measure(
    options: argparse.Namespace, console: Console, machine: dict[str, Any], settings: list[Setting]
) -> None:
    report.warn_of_load(console, machine)
    results = []
    with started_workers(options.variants, options.threads) as (workers, copy):
        for setting in settings:
            with console.status(f"V = {setting.vocab_size:,}, {setting.dtype}"):
                results.append(measure(setting, workers, copy, options.repetitions))
            report.print_result(console, results[-1])
    for line in (*report.notes(options.device), *report.aims(options.device, results)):
        console.print("* " + line, highlight=False)
    document = {"machine": machine, "results": [asdict(result) for result in results]}
    arguments.write(options, document, report.markdown(machine, results))


def _print_roofline(
    options: argparse.Namespace, console: Console, machine: dict[str, Any], settings: list[Setting]
) -> None:
    reason = f"torch {torch.__version__} sees no GPU"
    console.print(f"no GPU here ({reason}): nothing is measured", highlight=False)
    lines = roofline.rooflines(settings, options.variants)
    roofline.print_rooflines(console, lines)
    for line in roofline.notes():
        console.print("* " + line, highlight=False)
    document = {
        "machine": machine, "measured": False, "reason": reason,
        "gpus": [asdict(gpu) for gpu in roofline.gpus()],
        "rooflines": [asdict(line) for line in lines],
    }  # fmt: skip
    arguments.write(options, document, roofline.markdown(lines))


def _parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__.splitlines()[0])
    names = [name for name, variant in VARIANTS.items() if variant.task not in FAMILY]
    parser.add_argument(
        "--variants", type=arguments.list_of(arguments.one_of(names)),
        help=f"default: those for the device, of {','.join(names)}",
    )  # fmt: skip
    options = arguments.parse(parser)
    if options.variants is None:
        options.variants = [name for name in names if options.device in VARIANTS[name].devices]
    return options


if __name__ == "__main__":
    main()
