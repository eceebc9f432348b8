"""bfloat16 as uint16 patterns."""

from __future__ import annotations

import numpy as np


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 (no NaN) to patterns, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(patterns: np.ndarray) -> np.ndarray:
    return (patterns.astype(np.uint32) << 16).view(np.float32)
