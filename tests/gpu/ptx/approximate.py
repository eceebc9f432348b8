"""The special-function unit. Its last bits are not specified, only bounds of its error.

Here a result is the correctly rounded true value. With `noise` > 0 it is first moved by a random
part of the documented error, so that a test shows that a kernel needs no more than is promised.
The bounds are those of the PTX manual, section by instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Approximation:
    function: Callable[..., Array]  # on float64
    relative: float = 0.0
    absolute: float = 0.0
    # where the absolute bound holds instead of the relative one, as a function of the input
    absolute_where: Callable[[Array], Array] | None = None

    def evaluate(self, noise: float, rng: np.random.Generator, *operands: Array) -> Array:
        """The true value, moved by at most `noise` times the documented error. float64."""
        value = self.function(*(x.astype(np.float64) for x in operands))
        if noise == 0.0:
            return value
        # the rounding to single precision that follows is part of the documented error
        shift = np.abs(value) * self.relative
        if self.absolute:
            holds = self.absolute_where(operands[0]) if self.absolute_where else True
            shift = np.where(holds, self.absolute, shift)
        shift = np.maximum(shift - np.abs(value) * 2.0**-24, 0.0)
        moved = value + shift * noise * rng.uniform(-1.0, 1.0, value.shape)
        return np.where(np.isfinite(value) & (value != 0), moved, value)


def _near_one(x: Array) -> Array:
    return (x > 0.5) & (x < 2.0)


def _divide(a: Array, b: Array) -> Array:
    """div.approx: a divisor beyond 2^126 gives 0 (NaN for an infinite dividend)."""
    huge = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(huge, np.where(np.isinf(a), np.nan, np.copysign(0.0, a * b)), a / b)


SINGLE: dict[str, Approximation] = {
    "ex2": Approximation(np.exp2, relative=2.0**-22),
    "lg2": Approximation(np.log2, 2.0**-22, 2.0**-22, _near_one),
    "rcp": Approximation(lambda x: 1.0 / x, relative=2.0**-23),
    "rsqrt": Approximation(lambda x: 1.0 / np.sqrt(x), relative=2.0**-22.9),
    "sqrt": Approximation(np.sqrt, relative=2.0**-23),
    "tanh": Approximation(np.tanh, relative=2.0**-11),
    "div.approx": Approximation(_divide, relative=2.0**-22),
    "div.full": Approximation(lambda a, b: a / b, relative=2.0**-22),
}

HALF: dict[tuple[str, str], Approximation] = {
    ("ex2", "f16"): Approximation(np.exp2, relative=2.0**-9.9),
    ("ex2", "bf16"): Approximation(np.exp2, relative=2.0**-7),
    ("tanh", "f16"): Approximation(np.tanh, absolute=2.0**-10.987),
    ("tanh", "bf16"): Approximation(np.tanh, absolute=2.0**-8),
}
