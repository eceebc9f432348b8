"""A float64 answer, and how far from it a float32 kernel may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EPSILON = 2.0**-24  # half the distance of float32 neighbours, relative
LN2 = float(np.log(2))


@dataclass(frozen=True)
class Bounded:
    value: np.ndarray
    error: np.ndarray | float = 0.0  # absolute

    def __getitem__(self, key: object) -> Bounded:
        return Bounded(self.value[key], np.broadcast_to(self.error, self.value.shape)[key])

    def __add__(self, other: Bounded) -> Bounded:
        return Bounded(self.value + other.value, self.error + other.error)

    def excess(self, got: np.ndarray) -> np.ndarray:
        """Error as a share of what is allowed: at most 1. NaN and infinities must be the same."""
        with np.errstate(all="ignore"):
            difference = np.abs(got.astype(np.float64) - self.value)
            share = np.where(difference == 0, 0.0, difference / self.error)
        finite = np.isfinite(self.value)
        same = np.where(np.isnan(self.value), np.isnan(got), got == self.value)
        return np.where(finite & np.isfinite(got), share, np.where(same, 0.0, np.inf))


def masked(x: Bounded, rows: np.ndarray) -> Bounded:
    """0 in these rows."""
    return Bounded(np.where(rows, 0.0, x.value), np.where(rows, 0.0, x.error))


def weighted(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight * x with 0 * inf = 0, the convention of every expectation."""
    with np.errstate(all="ignore"):
        return np.where(weight == 0, 0.0, weight * x)


def finite(x: np.ndarray) -> np.ndarray:
    """For bounds: an infinite term has none."""
    return np.where(np.isfinite(x), x, 0.0)
