"""Logits and labels of a test, and how they lie in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import ptx

from .contract import LogitType
from .formulas import Model
from .headers import CudaPlan, FusedPlan
from .rows import Pattern

INV_TEMPERATURE = float(np.float32(0.4))
POWER_EXPONENT = float(np.float32(0.3))
IGNORED = -100

# Label of a row: where among the columns, 0 to 1, or a token id that is in no column.
INSIDE = 0.6


@dataclass
class Problem:
    """One row of logits for each pattern.

    labels: for each row a position in the columns (0.0 to 1.0) or a token id; INSIDE by default.
    None: there are no labels.
    """

    dtype: LogitType
    columns: int
    patterns: Sequence[Pattern]
    labels: Sequence[float | int] | None = ()
    vocab_start: int = 0
    vocab_size: int | None = None  # None: these columns are the whole vocabulary
    seed: int = 7
    inv_temperature: float = INV_TEMPERATURE
    power_exponent: float = POWER_EXPONENT
    _stored: tuple[np.ndarray, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        logits = np.zeros((2, self.rows, self.columns))
        for row, pattern in enumerate(self.patterns):
            if self.columns:
                logits[:, row] = pattern(rng, self.columns)
        self._stored = (self.dtype.encode(logits[0]), self.dtype.encode(logits[1]))

    @property
    def rows(self) -> int:
        return len(self.patterns)

    @property
    def student(self) -> np.ndarray:
        return self._stored[0]

    @property
    def teacher(self) -> np.ndarray:
        return self._stored[1]

    @cached_property
    def label_ids(self) -> np.ndarray:
        given = [*(self.labels or ()), *[INSIDE] * self.rows][: self.rows]
        last = max(self.columns - 1, 0)
        ids = [self.vocab_start + int(x * last) if isinstance(x, float) else x for x in given]
        return np.array(ids, np.int64)

    @cached_property
    def model(self) -> Model:
        """In float64, from the logits as they are stored."""
        return Model(
            self.dtype.decode(self.student), self.dtype.decode(self.teacher), self.label_ids,
            self.vocab_start, self.total, self.inv_temperature, self.power_exponent, IGNORED,
        )  # fmt: skip

    @property
    def total(self) -> int:
        return self.columns if self.vocab_size is None else self.vocab_size

    def shards(self, cuts: Sequence[int]) -> list[Problem]:
        """The same vocabulary cut at these columns."""
        parts = []
        for first, last in zip([0, *cuts], [*cuts, self.columns], strict=True):
            shard = replace(self, columns=last - first, vocab_start=first, vocab_size=self.total)
            shard._stored = (self.student[:, first:last], self.teacher[:, first:last])
            shard.label_ids = self.label_ids
            parts.append(shard)
        return parts


@dataclass(frozen=True)
class Layout:
    """How rows lie in memory, and how a launch cuts them.

    slack: elements behind each row, which do not exist; start: elements by which the first row
    misses a 256-byte boundary; both for the student's logits, the teacher's, and the gradient.
    """

    threads: int = 32
    parts: int = 1
    slack: tuple[int, int, int] = (0, 0, 0)
    start: tuple[int, int, int] = (0, 0, 0)

    def plan(self, columns: int, dtype: LogitType) -> CudaPlan:
        """As plan_cuda_launch would: parts of whole rounds of the block."""
        step = self.threads * 32 // dtype.size
        each = max(1, math.ceil(columns / (self.parts * step))) * step
        return CudaPlan(self.threads, max(1, math.ceil(columns / each)), each)

    def fused_plan(self, columns: int, dtype: LogitType) -> FusedPlan:
        """As plan_fused_launch would, for a cluster of `parts` blocks."""
        each = self.plan(columns, dtype).columns_per_part
        return FusedPlan(self.parts, self.threads, each, 2 * each * dtype.size)

    def place(
        self, device: ptx.Device, which: int, name: str, shape: tuple[int, int], dtype: LogitType
    ) -> ptx.DeviceArray:
        """Unwritten memory for tensor number `which`."""
        return device.allocate(
            shape, dtype.element, name, row_stride=shape[1] + self.slack[which],
            start=self.start[which] * dtype.size,
        )  # fmt: skip


WHOLE_ROWS = Layout()
