"""The table on the terminal, the same in Markdown, and what it says about the aims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from loss_bench.problem import HEAD_SIZE
from loss_bench.results import GRADIENT_TOLERANCE, LOSS_TOLERANCE, Row, SettingResult
from loss_bench.variants import VARIANTS

_COLUMNS = (
    "forward + backward",
    "ms",
    "fwd",
    "bwd",
    "x ours",
    "extra MiB",
    "% logits",
    "B/pair",
    "GB/s",
    "% copy",
    "err loss",
    "err grad",
)

# How time and memory are measured.
_ON_DEVICE = {
    "cpu": (
        "all take turns (A B C A B C ...); median wall time in ms after a warm-up. Before each "
        "turn the logits are restored by a copy. With PyTorch's CPU allocator, temporaries above "
        "32 MiB are new pages in every step.",
        "the resident set over the inputs (VmHWM, reset through /proc/self/clear_refs)",
    ),
    "cuda": (
        "one after the other; median time in ms between the device's events, after a warm-up. "
        "Before each step the logits are restored by a copy, and twice the L2 cache is read. Where "
        "the host is slower than the device, its time is in them.",
        "the tensors over the inputs, as torch.cuda counts them",
    ),
}

_AIM_SPEED, _AIM_BANDWIDTH, _AIM_MEMORY = 10.0, 0.70, 0.01


_TABLE_WIDTH = 140
_QUIET_LOAD = 0.5


def console() -> Console:
    """A terminal, or a file as wide as the tables."""
    made = Console()
    if not made.is_terminal:
        made.width = _TABLE_WIDTH
    return made


def warn_of_load(console: Console, machine: dict[str, Any]) -> None:
    if machine["load_average"] > _QUIET_LOAD:
        console.print(
            f"WARNING: load average {machine['load_average']}: the times below are not reliable",
            style="bold red",
        )


def header(machine: dict[str, Any]) -> list[str]:
    """Lines about machine and method."""
    versions = {"Python": machine["python"], **machine["packages"]}
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    build = ", ".join(f"{k} {v}" for k, v in machine["build"].items())
    return [
        *([f"GPU: {machine['gpu']}"] if machine["gpu"] else []),
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['ram_gb']} GB RAM, {machine['system']}",
        f"load average {machine['load_average']} at the start; {packages}",
        f"bgkd_megatron: {build}",
    ]


def time_note(device: str) -> str:
    """Continues "each in a process of its own, "."""
    return _ON_DEVICE[device][0]


def memory_note(device: str) -> str:
    """Continues "growth of "."""
    return _ON_DEVICE[device][1]


def notes(device: str) -> list[str]:
    """How to read the columns."""
    return [
        f"Each variant runs in a process of its own, {time_note(device)}",
        "x ours: time over that of ours for the same task. Output layers: their matrix products "
        f"(hidden size {HEAD_SIZE}) and those of their backward are in every such row, "
        "and the row without a loss is the floor; liger-kernel takes chunks of 1024 tokens (its "
        "default) and computes gradients in its forward.",
        f"extra MiB: growth of {memory_note(device)}; % logits: of ONE logits tensor. The "
        "gradient is included; ours overwrites the logits.",
        "B/pair: bytes moved per student and teacher logit. Ours: the kernels' launch plan. Eager: "
        "inputs and outputs of every operation, added up by a TorchDispatchMode. GB/s: those bytes "
        "over the time.",
        "% copy, forward/backward/both: launch-plan bytes per second, over those that "
        "tensor.copy_ of one logits tensor reads and writes per second, after another copy in "
        "the same turns.",
        f"err: against float64 on the same rounded inputs; loss relative (limits "
        f"{_limits(LOSS_TOLERANCE)}), gradient |g - g64| / |g64| of 16 tokens (limits "
        f"{_limits(GRADIENT_TOLERANCE)}). Beyond the limits: void.",
    ]


def _limits(tolerance: dict[str, float]) -> str:
    return ", ".join(f"{dtype} {limit:.0e}" for dtype, limit in tolerance.items())


def caption(result: SettingResult) -> str:
    return (
        f"V = {result.vocab_size:,}, N = {result.num_tokens} tokens, {result.dtype}, logits "
        f"2 x {result.logits_bytes / 2**20:.0f} MiB, copy {result.copy_gb_per_s:.1f} GB/s"
    )


def _cells(row: Row) -> list[str]:
    if row.total_ms is None:
        return [f"{row.title} ({row.status}: {row.reason})"] + [""] * (len(_COLUMNS) - 1)
    bandwidth = "/".join(f"{100 * x:.0f}" for x in row.copy_fraction or ())
    return [
        row.title if row.status == "ok" else f"{row.title} ({row.status})",
        number(row.total_ms, ".1f"),
        number(row.forward_ms, ".1f"),
        number(row.backward_ms, ".1f"),
        number(row.times_ours, ".1f"),
        number(row.extra_bytes and row.extra_bytes / 2**20, ".1f"),
        number(row.extra_fraction and 100 * row.extra_fraction, ".2f"),
        number(row.bytes_per_pair, ".0f"),
        number(row.gb_per_s, ".0f"),
        bandwidth,
        number(row.loss_error, ".0e"),
        number(row.gradient_error, ".0e"),
    ]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def print_result(console: Console, result: SettingResult) -> None:
    table = Table(title=caption(result), title_justify="left")
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0, max_width=40)
    for row, following in zip(result.rows, [*result.rows[1:], None], strict=True):
        is_last_of_task = following is None or following.task != row.task
        style = "bold" if VARIANTS[row.variant].ours else None
        table.add_row(*_cells(row), style=style, end_section=is_last_of_task)
    console.print(table)


def markdown(machine: dict[str, Any], results: list[SettingResult]) -> str:
    lines = [*header(machine), ""]
    for result in results:
        lines += [f"**{caption(result)}**", ""]
        lines += [markdown_line(_COLUMNS), markdown_line(["---", *["--:"] * (len(_COLUMNS) - 1)])]
        lines += [markdown_line(_cells(row)) for row in result.rows] + [""]
    lines += [f"* {note}" for note in notes(machine["device"])] + [""]
    lines += [f"* {line}" for line in aims(machine["device"], results)]
    return "\n".join(lines) + "\n"


def markdown_line(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def aims(device: str, results: list[SettingResult]) -> Iterator[str]:
    """One line per aim of the CPU: how many rows reach it, and those that do not."""
    if device != "cpu":
        return
    speed: dict[str, float] = {}
    bandwidth: dict[str, float] = {}
    memory: dict[str, float] = {}
    for result in results:
        for row in result.rows:
            variant = VARIANTS[row.variant]
            where = f"{row.title}, V = {result.vocab_size:,} {result.dtype}"
            if row.times_ours is not None and variant.has_loss and not variant.ours:
                speed[where] = row.times_ours
            if row.copy_fraction is not None and result.dtype == "fp32":
                bandwidth[where] = row.copy_fraction[2]
            if row.copy_fraction is not None and row.extra_fraction is not None:
                memory[where] = row.extra_fraction
    missed = {name: f"{x:.1f}" for name, x in speed.items() if x < _AIM_SPEED}
    yield aim(f"{_AIM_SPEED:g} times as fast as each other row", speed, missed)
    missed = {name: f"{x:.0%}" for name, x in bandwidth.items() if x < _AIM_BANDWIDTH}
    yield aim(f"{_AIM_BANDWIDTH:.0%} of the copy bandwidth in fp32", bandwidth, missed)
    missed = {name: f"{x:.2%}" for name, x in memory.items() if x >= _AIM_MEMORY}
    yield aim(f"extra memory below {_AIM_MEMORY:.0%} of one logits tensor", memory, missed)


def aim(what: str, measured: dict[str, float], missed: dict[str, str]) -> str:
    count = f"{len(measured) - len(missed)} of {len(measured)} reach it"
    misses = "; ".join(f"{name}: {value}" for name, value in missed.items())
    return f"aim: {what}. {count}" + (f". Missed by {misses}" if missed else "")
