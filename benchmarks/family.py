"""Every divergence, weighting and hard label: ours beside its formula in eager PyTorch.

    python benchmarks/family.py                       # all of them, about a quarter of an hour
    python benchmarks/family.py --dtype bf16 --vocab 151936 --members jensen_shannon,hybrid_wsl
    python benchmarks/family.py --markdown table.md --json table.json

Run it on a machine that does nothing else.  Forward and backward of the mean loss of N tokens; each
row's three variants (ours, eager, ours of pure forward KL) take turns.  loss_bench/family.py says
what is compared, loss_bench/eager.py how it is written, and every table how to read it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

import torch
from loss_bench import arguments, family_report, report
from loss_bench.comparison import measure, started_workers
from loss_bench.family import FAMILY, PURE, ours_and_eager
from loss_bench.family_report import FamilyResult, FamilyRow
from loss_bench.measure import machine_facts
from loss_bench.problem import Setting


def main() -> None:
    options = _parse()
    console = report.console()
    machine = machine_facts(options.device)
    for line in report.header(machine):
        console.print(line, highlight=False)
    report.warn_of_load(console, machine)
    results = []
    for setting in arguments.settings(options):
        rows = []
        with console.status(f"V = {setting.vocab_size:,}, {setting.dtype}") as status:
            for member in options.members:
                status.update(f"V = {setting.vocab_size:,}, {setting.dtype}, {member}")
                rows.append(_measure(member, setting, options))
        results.append(FamilyResult(setting.vocab_size, setting.num_tokens, setting.dtype, rows))
        family_report.print_result(console, results[-1])
    for note in family_report.notes(options.device):
        console.print("* " + note, highlight=False)
    for line in family_report.aims(options.device, results):
        console.print("* " + line, highlight=False)
    document = {"machine": machine, "results": [asdict(result) for result in results]}
    arguments.write(options, document, family_report.markdown(machine, results))


def _measure(member: str, setting: Setting, options: argparse.Namespace) -> FamilyRow:
    variants = dict.fromkeys([ours_and_eager(PURE)[0], *ours_and_eager(member)])
    with started_workers(list(variants), options.threads) as (workers, copy):
        result = measure(setting, workers, copy, options.repetitions)
    return family_report.family_row(member, result, os.getloadavg()[0])


def _parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--members", type=arguments.list_of(arguments.one_of(FAMILY)), default=list(FAMILY),
        help=f"default: all of {','.join(FAMILY)}",
    )  # fmt: skip
    options = arguments.parse(parser)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU")
    return options


if __name__ == "__main__":
    main()
