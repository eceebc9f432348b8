"""The divergences that need both probabilities inside a nonlinear function: pure data.

Notation as in `statistics`; ``m`` is a mixture of teacher ``p`` and student ``q``. Those with a
mixture and the total variation are finite, whatever tokens a model excludes.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["FDivergence", "FKind"]


class FKind(enum.IntEnum):
    """In the order of csrc/core/fdiv.h."""

    JENSEN_SHANNON = 0
    """lam KL(q||m) + (1 - lam) KL(p||m), m = (1 - lam) p + lam q"""
    SKEW_FORWARD = 1
    """KL(p||m), m = lam p + (1 - lam) q"""
    SKEW_REVERSE = 2
    """KL(q||m), m = (1 - lam) p + lam q"""
    TOTAL_VARIATION = 3
    """sum_v |p_v - q_v| / 2"""
    ALPHA_BETA = 4
    """-sum_v (p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)) / (a b), and its limits where a, b or
    their sum is 0. Source: Cichocki, Cruces, Amari 2011, "Generalized alpha-beta divergences"."""


# Both parts of the mixture must be visible in float32.
_MARGIN = 2.0**-24
# A difference of powers is divided by these exponents: float32 keeps 1e-5 of it.
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = 0.01, 10.0


@dataclass(frozen=True)
class FDivergence:
    """A divergence of a second sweep over the logits.

    lam: of a mixture, between 0 and 1 by at least 2^-24.
    alpha, beta: of ALPHA_BETA; each of them and their sum is 0 or of a size in [0.01, 10]. Where a
        model excludes a token that the other one has, the divergence is huge if it should be
        infinite: about 1e30.
    What a kind does not read must be None. Raises ValueError else.
    """

    kind: FKind
    lam: float | None = None
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FKind(self.kind))
        has_powers = self.kind == FKind.ALPHA_BETA
        has_mixture = not has_powers and self.kind != FKind.TOTAL_VARIATION
        for name, is_read in (("lam", has_mixture), ("alpha", has_powers), ("beta", has_powers)):
            value = getattr(self, name)
            if (value is not None) != is_read:
                wanted = "a number" if is_read else "None: it is not read"
                raise ValueError(
                    f"FDivergence: {name} of {self.kind.name} must be {wanted}, got {value}"
                )
        if self.lam is not None and not _MARGIN <= self.lam <= 1 - _MARGIN:
            raise ValueError(
                f"FDivergence: lam of {self.kind.name} must be between 0 and 1, by at least 2^-24, "
                f"got {self.lam}. At 0 and at 1 the divergence is 0 or a KL, which vocab_stats has"
            )
        if self.alpha is not None and self.beta is not None:
            exponents = (self.alpha, self.beta, self.alpha + self.beta)
            if not all(map(_is_exponent, exponents)):
                raise ValueError(
                    "FDivergence: alpha, beta and alpha + beta must each be 0 or of a size between "
                    f"{_SMALLEST_EXPONENT} and {_LARGEST_EXPONENT}, got alpha {self.alpha}, beta "
                    f"{self.beta}, sum {exponents[2]}"
                )


def _is_exponent(x: float) -> bool:
    # A sum that rounding keeps from 0 is 0, as in csrc/core/fdiv.h.
    return abs(x) < 1e-5 or (math.isfinite(x) and _SMALLEST_EXPONENT <= abs(x) <= _LARGEST_EXPONENT)
