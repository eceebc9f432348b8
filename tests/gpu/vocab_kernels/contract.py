"""Names and numbers of csrc/core and csrc/vocab_stats.h for Python."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
from bfloat16 import from_bfloat16, to_bfloat16

LOWEST = float(np.finfo(np.float32).min)  # kLowest
NO_TOKEN = float(1 << 24)  # kMaxVocabSize


class Feature(IntFlag):
    TEACHER = 1
    LABEL = 2
    FORWARD = 4
    REVERSE = 8
    STUDENT_ENTROPY = 16
    TEACHER_ENTROPY = 32
    POWER = 64
    SOFTENED = 128


ALL_FEATURES = Feature(255)


class Divergence(IntEnum):
    JENSEN_SHANNON = 0
    SKEW_FORWARD = 1
    SKEW_REVERSE = 2
    TOTAL_VARIATION = 3
    ALPHA_BETA = 4


# (alpha, beta) where a test says nothing else: no limit, finite whatever a model excludes
EXPONENTS = (0.7, 0.4)


class SoftTerm(IntEnum):
    NONE = 0
    FORWARD = 1
    REVERSE = 2
    ADAPTIVE = 3


class Weighting(IntEnum):
    CONSTANT = 0
    CONFIDENCE = 1
    LABEL_CONFIDENCE = 2
    SHANNON = 3
    TSALLIS = 4
    WSL = 5


class HardLabel(IntEnum):
    DATA = 0
    TEACHER_ARGMAX = 1


@dataclass(frozen=True)
class LogitType:
    name: str
    code: int  # DType
    mangled: str  # as a template argument
    element: np.dtype  # how the executor stores it
    bits: int  # of the significand
    smallest: float  # distance of the smallest numbers, half of which a rounding may lose

    @property
    def size(self) -> int:
        return self.element.itemsize

    @property
    def vector(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.size

    def encode(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            if self.name == "bf16":
                return to_bfloat16(np.asarray(x, np.float32))
            return np.asarray(x).astype(self.element)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return (from_bfloat16(stored) if self.name == "bf16" else stored).astype(np.float64)

    def rounding(self, x: np.ndarray) -> np.ndarray:
        """How much rounding to this type may lose. Numbers that float32 flushes are lost too."""
        return np.maximum(np.abs(x) * 2.0**-self.bits, self.smallest / 2)


FP32 = LogitType("fp32", 0, "f", np.dtype(np.float32), 24, 2.0**-125)
BF16 = LogitType("bf16", 1, "13__nv_bfloat16", np.dtype(np.uint16), 8, 2.0**-125)
FP16 = LogitType("fp16", 2, "6__half", np.dtype(np.float16), 11, 2.0**-24)
LOGIT_TYPES = (FP32, BF16, FP16)

# Rows of a tensor of statistics, and the features that each needs (csrc/core/statistics.h).
_TEACHER = Feature.TEACHER
STATS = {
    "student_max": Feature(0),
    "student_sum": Feature(0),
    "student_argmax": Feature(0),
    "student_entropy": Feature.STUDENT_ENTROPY,
    "student_at_label": Feature.LABEL,
    "teacher_max": _TEACHER,
    "teacher_sum": _TEACHER,
    "teacher_argmax": _TEACHER,
    "student_at_teacher_argmax": _TEACHER,
    "teacher_entropy": _TEACHER | Feature.TEACHER_ENTROPY,
    "teacher_at_label": _TEACHER | Feature.LABEL,
    "forward_kl": _TEACHER | Feature.FORWARD,
    "reverse_kl": _TEACHER | Feature.REVERSE,
    "teacher_power_sum": _TEACHER | Feature.POWER,
    "soft_student_sum": _TEACHER | Feature.SOFTENED,
    "soft_teacher_sum": _TEACHER | Feature.SOFTENED,
    "soft_forward_kl": _TEACHER | Feature.SOFTENED,
    "soft_reverse_kl": _TEACHER | Feature.SOFTENED,
}


def stat_rows(features: Feature) -> list[str]:
    """Names of the rows of a statistics tensor, in order."""
    return [name for name, needs in STATS.items() if needs & features == needs]
