"""Inputs, launches and float64 answers of the sample kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ptx
from bfloat16 import from_bfloat16, to_bfloat16

TEMPERATURE = 2.0
LOG2E_OVER_T = np.float32(np.log2(np.e) / TEMPERATURE)
FLAGS = ("-ftz=true",)
PADDING = 8


@dataclass
class SampleProblem:
    rows: int
    columns: int
    spread: float = 4.0  # standard deviation of the logits
    peak: float = 0.0  # of one student's and one other teacher's logit in every row, if not 0

    @cached_property
    def student(self) -> np.ndarray:
        return self._logits(1, 0)

    @cached_property
    def teacher(self) -> np.ndarray:
        return self._logits(2, self.columns - 8)

    def _logits(self, seed: int, peak_at: int) -> np.ndarray:
        logits = np.random.default_rng(seed).normal(0, self.spread, (self.rows, self.columns))
        if self.peak:
            logits[:, peak_at] = self.peak
        return to_bfloat16(logits)

    @cached_property
    def scale(self) -> np.ndarray:
        return np.random.default_rng(3).normal(size=self.rows).astype(np.float32)

    def _log_softmax(self, logits: np.ndarray) -> np.ndarray:
        z = from_bfloat16(logits).astype(np.float64) / TEMPERATURE
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    @cached_property
    def divergence(self) -> np.ndarray:
        p = self._log_softmax(self.teacher)
        return (np.exp(p) * (p - self._log_softmax(self.student))).sum(1)

    @cached_property
    def gradient(self) -> np.ndarray:
        difference = np.exp(self._log_softmax(self.student)) - np.exp(
            self._log_softmax(self.teacher)
        )
        return self.scale[:, None].astype(np.float64) / TEMPERATURE * difference

    # ---- what kernels found

    def divergence_of(self, stats: np.ndarray) -> np.ndarray:
        student_max, student_sum, teacher_max, teacher_sum, weighted = stats.astype(np.float64).T
        student_lse = student_max + np.log2(student_sum)
        teacher_lse = teacher_max + np.log2(teacher_sum)
        return np.log(2) * (weighted / teacher_sum - teacher_lse + student_lse)

    def divergence_error(self, stats: np.ndarray) -> float:
        """Largest relative error."""
        with np.errstate(all="ignore"):  # a broken kernel's statistics may be anything
            return float(np.abs(self.divergence_of(stats) / self.divergence - 1).max())

    def gradient_is_right(self, patterns: np.ndarray, tolerance: float = 1e-6) -> bool:
        """Within bfloat16's rounding and a relative error of either softmax."""
        s, t = np.exp(self._log_softmax(self.student)), np.exp(self._log_softmax(self.teacher))
        allowed = np.abs(self.gradient) * 2.0**-8
        allowed += np.abs(self.scale[:, None]) / TEMPERATURE * tolerance * (s + t)
        error = np.abs(from_bfloat16(patterns) - self.gradient)
        return bool((error <= allowed + 2.0**-126).all())


@dataclass
class SampleRun:
    device: ptx.Device
    stats: np.ndarray
    gradient: np.ndarray
    reports: list[ptx.LaunchReport]


def run(
    module: ptx.Module, problem: SampleProblem, threads: int = 256, **options: Any
) -> SampleRun:
    device = ptx.Device()
    stride = problem.columns + PADDING
    student = device.upload(problem.student, "student", row_stride=stride)
    teacher = device.upload(problem.teacher, "teacher", row_stride=stride)
    scale = device.upload(problem.scale, "scale")
    stats = device.allocate((problem.rows, 5), np.float32, "stats")
    shape = (problem.rows, problem.columns)
    gradient = device.allocate(shape, np.uint16, "gradient", row_stride=stride)
    sizes = [problem.columns, stride, LOG2E_OVER_T]
    reports = [
        device.launch(module, f"sample_statsILi{threads}E", problem.rows, threads,
                      [student, teacher, stats, *sizes], **options),
        device.launch(module, f"sample_gradientILi{threads}E", problem.rows, threads,
                      [student, teacher, stats, scale, gradient, *sizes,
                       np.float32(1 / TEMPERATURE)], **options),
    ]  # fmt: skip
    return SampleRun(device, stats.read(), gradient.read(), reports)
