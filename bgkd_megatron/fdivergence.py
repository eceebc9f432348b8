"""The divergences that need both probabilities inside a nonlinear function: pure data.

Notation as in `statistics`; ``m`` is a mixture of teacher ``p`` and student ``q``. All are finite,
whatever tokens a model excludes.
"""

from __future__ import annotations

import enum
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


# Both parts of the mixture must be visible in float32.
_MARGIN = 2.0**-24


@dataclass(frozen=True)
class FDivergence:
    """A divergence of a second sweep over the logits.

    lam: weight of the mixture, between 0 and 1 by at least 2^-24; None for TOTAL_VARIATION, which
        has none. Raises ValueError else.
    """

    kind: FKind
    lam: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FKind(self.kind))
        if self.kind == FKind.TOTAL_VARIATION:
            if self.lam is not None:
                raise ValueError(
                    f"FDivergence: TOTAL_VARIATION has no mixture, lam must be None, got {self.lam}"
                )
        elif self.lam is None or not _MARGIN <= self.lam <= 1 - _MARGIN:
            raise ValueError(
                f"FDivergence: lam of {self.kind.name} must be between 0 and 1, by at least 2^-24, "
                f"got {self.lam}. At 0 and at 1 the divergence is 0 or a KL, which vocab_stats has"
            )
