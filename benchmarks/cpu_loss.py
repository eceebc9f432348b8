"""Distillation losses side by side: ours, eager PyTorch, nvidia-modelopt, liger-kernel.

    python benchmarks/cpu_loss.py                       # the whole comparison
    python benchmarks/cpu_loss.py --dtype fp32 --vocab 151936 --variants ours_kl,modelopt
    python benchmarks/cpu_loss.py --markdown table.md --json table.json
    python benchmarks/cpu_loss.py --device cuda --tokens 4096 --vocab 128256 --dtype bf16

On a GPU Transformer Engine is compared, too (nothing has been measured on one yet).
Run it on a machine that does nothing else.  `pip install .[bench]` installs the peers; one that is
missing becomes a row with the reason.  Forward and backward of the mean loss of N tokens, measured
as loss_bench/report.py says below every table.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loss_bench import report
from loss_bench.measure import machine_facts
from loss_bench.problem import DTYPES, Setting, exact_loss
from loss_bench.results import SettingResult, compare_to_ours, measured_row, skipped_row
from loss_bench.variants import VARIANTS
from loss_bench.worker import CopyRunner, Facts, Seconds, VariantRunner, Worker, WorkerError
from rich.console import Console

from bgkd_megatron import ops

# Tensors of at least 32 MiB in bf16 and 64 MiB in fp32: larger than most caches and, like those of
# real batches, of the size that glibc's malloc gives back to the system when they are freed.
# A GPU's L2 cache is larger, and it moves a tensor a hundred times as fast.
_DEFAULT_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
_TOKENS_MULTIPLE = 64
_QUIET_LOAD = 0.5
# OpenMP threads of the turn before go on spinning for some milliseconds.
_SPIN_SECONDS = 0.05
_TABLE_WIDTH = 140


def main() -> None:
    options = _parse()
    console = Console()
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    torch.set_num_threads(options.threads)
    device = options.device
    machine = machine_facts(device)
    for line in report.header(machine):
        console.print(line, highlight=False)
    if machine["load_average"] > _QUIET_LOAD:
        console.print(
            f"WARNING: load average {machine['load_average']}: the times below are not reliable",
            style="bold red",
        )
    settings = [
        Setting(vocab, options.tokens or _default_tokens(vocab, device), dtype, device)
        for vocab in options.vocab
        for dtype in options.dtype
    ]
    results = []
    with _workers(options.variants, options.threads) as (workers, copy):
        for setting in settings:
            with console.status(f"V = {setting.vocab_size:,}, {setting.dtype}"):
                results.append(measure(setting, workers, copy, options.repetitions))
            report.print_result(console, results[-1])
    for line in (*report.notes(device), *report.aims(results)):
        console.print("* " + line, highlight=False)
    if options.json:
        document = {"machine": machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(machine, results))


def _default_tokens(vocab: int, device: str) -> int:
    return math.ceil(_DEFAULT_LOGITS[device] / vocab / _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE


def measure(
    setting: Setting, workers: dict[str, Worker], copy: Worker, repetitions: int
) -> SettingResult:
    """All variants at one setting."""
    copy.call("prepare", setting)
    facts: dict[str, Facts] = {}
    failed: dict[str, str] = {}
    copy_times: list[float] = []
    times: dict[str, list[Seconds]] = {}
    # The memory of a GPU does not hold all variants at once, and its times swing less.
    groups = [list(workers)] if setting.device == "cpu" else [[name] for name in workers]
    for group in groups:
        for name in group:
            try:
                facts[name] = workers[name].call("prepare", setting)
                times[name] = []
            except WorkerError as error:
                failed[name] = str(error)
        ready = [name for name in group if name in facts]
        for _ in range(repetitions):
            copy_times.append(_turn(copy)["forward"])
            for name in ready:
                times[name].append(_turn(workers[name]))
        for name in group:
            with suppress(WorkerError):  # of one that failed above
                workers[name].call("release")
    copy_rate = 2 * setting.logits_bytes / median(copy_times)
    exact = {task: exact_loss(setting, task) for task in {VARIANTS[name].task for name in facts}}
    rows = [
        measured_row(name, setting, facts[name], exact[VARIANTS[name].task], times[name], copy_rate)
        if name in facts
        else skipped_row(name, failed[name])
        for name in workers
    ]
    compare_to_ours(rows)
    return SettingResult(
        setting.vocab_size, setting.num_tokens, setting.dtype, setting.logits_bytes,
        copy_rate / 1e9, rows,
    )  # fmt: skip


def _turn(worker: Worker) -> Seconds:
    time.sleep(_SPIN_SECONDS)
    return worker.call("run")


@contextmanager
def _workers(names: list[str], num_threads: int) -> Iterator[tuple[dict[str, Worker], Worker]]:
    copy = Worker(CopyRunner, num_threads=num_threads)
    workers = {name: Worker(VariantRunner, name, num_threads=num_threads) for name in names}
    try:
        yield workers, copy
    finally:
        for worker in (copy, *workers.values()):
            worker.stop()


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
    parser.add_argument("--repetitions", type=_positive, default=5)
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if options.device == "cuda" and "cuda" not in ops.DEVICES:
        parser.error("--device cuda: this build has no CUDA kernels, see CONTRIBUTING.md")
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
