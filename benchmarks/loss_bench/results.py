"""Turns raw measurements into the numbers of the report."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from loss_bench.problem import Setting
from loss_bench.traffic import moved_bytes
from loss_bench.variants import VARIANTS
from loss_bench.worker import Facts, Seconds

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Relative error of the mean loss against float64 on the same rounded inputs."""
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""|g - g64| / |g64|.  Rounding a gradient to bfloat16 alone makes 2e-3."""


@dataclass
class Row:
    """One variant at one setting.  Times are medians in milliseconds; None: not measured."""

    variant: str
    title: str
    task: str
    status: str
    """ok | skipped (reason says why) | void (computes something else)"""
    reason: str = ""
    loss_error: float | None = None
    gradient_error: float | None = None
    forward_ms: float | None = None
    backward_ms: float | None = None
    total_ms: float | None = None
    times_ours: float | None = None
    """total_ms over that of ours for the same task"""
    extra_bytes: int | None = None
    """peak memory above the inputs; a gradient that overwrites the logits is not extra"""
    extra_fraction: float | None = None
    """extra_bytes over the size of one logits tensor"""
    bytes_per_pair: float | None = None
    """ours: the kernels' launch plan; eager: every operation's inputs and outputs"""
    gb_per_s: float | None = None
    """those bytes over total_ms"""
    copy_fraction: tuple[float, float, float] | None = None
    """bandwidth of forward, backward, both (launch plan / time) over that of a copy; ours only"""


@dataclass
class SettingResult:
    """All variants at one setting, timed in turns."""

    vocab_size: int
    num_tokens: int
    dtype: str
    logits_bytes: int
    """of one of the two tensors"""
    copy_gb_per_s: float
    """read plus written bytes over the median time of tensor.copy_"""
    rows: list[Row]

    def row(self, variant: str) -> Row:
        return next(row for row in self.rows if row.variant == variant)


def skipped_row(name: str, reason: str) -> Row:
    return Row(name, VARIANTS[name].title, VARIANTS[name].task, "skipped", reason)


def measured_row(
    name: str, setting: Setting, facts: Facts, exact: float, times: list[Seconds], copy: float
) -> Row:
    """exact: the float64 loss; copy: bytes per second."""
    variant = VARIANTS[name]
    row = skipped_row(name, "")
    row.status = "ok"
    forward = median(t["forward"] for t in times)
    backward = median(t["backward"] for t in times)
    total = median(t["forward"] + t["backward"] for t in times)
    row.forward_ms, row.backward_ms, row.total_ms = forward * 1e3, backward * 1e3, total * 1e3
    row.extra_bytes = facts["extra_bytes"]
    row.extra_fraction = row.extra_bytes / setting.logits_bytes
    if facts["counted_bytes"] is not None:
        row.bytes_per_pair = facts["counted_bytes"] / setting.pairs
    if facts["gradient_error"] is not None:
        row.loss_error = abs(facts["loss"] - exact) / abs(exact)
        row.gradient_error = facts["gradient_error"]
        right = row.loss_error <= LOSS_TOLERANCE[setting.dtype]
        right = right and row.gradient_error <= GRADIENT_TOLERANCE[setting.dtype]
        if not right:  # NaN is not right either
            row.status, row.reason = "void", "errors beyond the limits"
    if variant.ours and variant.task != "head_kl":
        moved = moved_bytes(variant, setting)
        row.bytes_per_pair = sum(moved) / setting.pairs
        row.copy_fraction = (
            moved[0] / forward / copy, moved[1] / backward / copy, sum(moved) / total / copy,
        )  # fmt: skip
    if row.bytes_per_pair is not None:
        row.gb_per_s = row.bytes_per_pair * setting.pairs / total / 1e9
    return row


def compare_to_ours(rows: list[Row]) -> None:
    """Fills in times_ours where ours of the same task was measured."""
    ours: dict[str, float | None] = {}
    for row in rows:
        if VARIANTS[row.variant].ours:
            ours.setdefault(row.task, row.total_ms)
    for row in rows:
        base = ours.get(row.task)
        if row.total_ms is not None and base is not None:
            row.times_ours = row.total_ms / base
