"""The validated configuration of a hybrid hard/soft objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["ObjectiveConfig"]

# Below this distance from 1 the float32 rounding of sum_v p_v^gamma (~1e-7) exceeds 1e-5 of the
# weight, whose denominator shrinks like |1 - gamma| log V.
_TSALLIS_MIN_DISTANCE = 1e-3


class ObjectiveConfig(BaseModel):
    """loss = w * soft + (1 - w) * hard, per token, with a weight w that carries no gradient.

    Raises pydantic.ValidationError (a ValueError) that names the field, the accepted values and
    what came.  Source: arXiv 2605.26246, section "hybrid supervision".
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    soft: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """Soft term: T^2 KL(p^T || q^T) or T^2 KL(q^T || p^T); p teacher, q student."""

    hard_label: Literal["data", "teacher_argmax"] = "data"
    """Token of the hard term -log q(token): the data's label, or the teacher's likeliest token."""

    weighting: Literal["static", "confidence", "entropy", "curriculum"] = "entropy"
    """Soft weight w: `soft_weight`; 1 - max p; normalized teacher entropy; or a linear warm-up."""

    soft_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """w of the static weighting; final w of the curriculum.  The others do not read it."""

    entropy: Literal["shannon", "tsallis"] = "shannon"
    """Entropy weighting: H_T / log V, or (sum p^gamma - 1) / (V^(1 - gamma) - 1)."""

    tsallis_gamma: float = Field(default=0.1, gt=0.0)
    """Exponent gamma of the Tsallis entropy; small values look at the teacher's tail."""

    curriculum_fraction: float = Field(default=0.2, gt=0.0, le=1.0)
    """Part of the run over which the curriculum raises w from 0 to `soft_weight`."""

    temperature: float = Field(default=1.0, gt=0.0)
    """T of the soft term.  Hard term and weights always use T = 1."""

    @field_validator("tsallis_gamma")
    @classmethod
    def _distinct_from_shannon(cls, gamma: float) -> float:
        if abs(gamma - 1.0) < _TSALLIS_MIN_DISTANCE:
            raise ValueError(
                f"must differ from 1 by at least {_TSALLIS_MIN_DISTANCE}, got {gamma}: "
                "the limit gamma -> 1 is entropy='shannon'"
            )
        return gamma

    @property
    def has_soft_term(self) -> bool:
        """False when w is 0 for every token of the run."""
        return self.weighting not in ("static", "curriculum") or self.soft_weight > 0.0

    @property
    def needs_teacher(self) -> bool:
        """False for a hard-only objective on the data's labels: no teacher logits are read."""
        return self.has_soft_term or self.hard_label == "teacher_argmax"
