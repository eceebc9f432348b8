"""Without a GPU: the times that the bandwidths of some GPUs allow, from the bytes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loss_bench.problem import Setting
from loss_bench.traffic import moved_bytes
from loss_bench.variants import VARIANTS

_TABLE = Path(__file__).parents[1] / "kernels" / "gpus.h"
_LINE = re.compile(r'^ *\{"(\w+)", (\d+), \d+, \w+, "([^"]+)"\},$', re.M)

CAPTION = "static, not measured: ms = bytes / bandwidth of the memory, forward + backward"


@dataclass(frozen=True)
class Gpu:
    name: str
    gb_per_s: float
    source: str


@dataclass(frozen=True)
class Roofline:
    """One of ours at one setting."""

    variant: str
    vocab_size: int
    num_tokens: int
    dtype: str
    forward_bytes: int
    backward_bytes: int
    ms: dict[str, float]
    """by GPU"""


def gpus() -> list[Gpu]:
    """The same as the kernel benchmark's.  Raises ValueError where they are not to be found."""
    found = [Gpu(name, float(rate), sheet) for name, rate, sheet in _LINE.findall(_read_table())]
    if not found:
        raise ValueError(f'{_TABLE}: expected lines like {{"H100", 3350, 132, ...}}, got none')
    return found


def _read_table() -> str:
    return _TABLE.read_text(encoding="utf-8")


def rooflines(settings: list[Setting], names: list[str]) -> list[Roofline]:
    """Of those variants that are ours and take logits: the bytes of the others are not known."""
    wanted = [n for n in names if VARIANTS[n].ours and VARIANTS[n].task != "head_kl"]
    return [_roofline(name, setting) for setting in settings for name in wanted]


def _roofline(name: str, setting: Setting) -> Roofline:
    moved = moved_bytes(VARIANTS[name], setting)
    return Roofline(
        name, setting.vocab_size, setting.num_tokens, setting.dtype, *moved,
        {gpu.name: sum(moved) / gpu.gb_per_s / 1e6 for gpu in gpus()},
    )  # fmt: skip


def _columns() -> list[str]:
    return ["forward + backward", "V", "N", "dtype", "MiB", *(f"{g.name} ms" for g in gpus())]


def _cells(line: Roofline) -> list[str]:
    moved = (line.forward_bytes + line.backward_bytes) / 2**20
    return [
        VARIANTS[line.variant].title,
        f"{line.vocab_size:,}",
        f"{line.num_tokens:,}",
        line.dtype,
        f"{moved:.1f}",
        *(f"{ms:.3f}" for ms in line.ms.values()),
    ]


def notes() -> Iterator[str]:
    sheets = ", ".join(f"{g.name} {g.gb_per_s:.0f} GB/s ({g.source})" for g in gpus())
    yield f"Bandwidths of NVIDIA's data sheets, which no kernel reaches: {sheets}."
    yield "Where arithmetic is the bound instead, docs/kernels.md says."


def print_rooflines(console: Console, lines: list[Roofline]) -> None:
    table = Table(title=CAPTION, title_justify="left")
    for i, column in enumerate(_columns()):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
    for line in lines:
        table.add_row(*_cells(line))
    console.print(table)


def markdown(lines: list[Roofline]) -> str:
    rows = [_columns(), ["---", *["--:"] * (len(_columns()) - 1)], *map(_cells, lines)]
    text = [CAPTION, "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    return "\n".join([*text, *(f"* {note}" for note in notes())]) + "\n"
