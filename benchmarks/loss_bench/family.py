"""Every divergence and every weighting: what is compared, and with which formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bgkd_megatron.objectives import ObjectiveConfig
from loss_bench import eager
from loss_bench.eager import EagerLoss

__all__ = ["FAMILY", "PURE", "Member", "ours_and_eager"]


@dataclass(frozen=True)
class Member:
    """One row of the table."""

    title: str
    config: ObjectiveConfig
    eager: EagerLoss
    is_hybrid: bool = False
    """Forward KL and a hard term, which have one gradient together."""

    @property
    def reads(self) -> int:
        """Reads of both logits in forward."""
        return 1 if self.config.fdivergence is None else 2


def ours_and_eager(name: str) -> tuple[str, str]:
    """The names of a member's variants."""
    return f"ours_{name}", f"eager_{name}"


def _soft(title: str, divergence: eager.Divergence, **settings: Any) -> Member:
    config = ObjectiveConfig(weighting="static", soft_weight=1.0, **settings)
    return Member(title, config, eager.mean_of(divergence))


def _hard(title: str, loss: EagerLoss, **settings: Any) -> Member:
    return Member(title, ObjectiveConfig(weighting="static", soft_weight=0.0, **settings), loss)


def _alpha_beta(a: float, b: float) -> Member:
    return _soft(
        f"alpha-beta ({a:g}, {b:g})", eager.alpha_beta(a, b), soft="alpha_beta", alpha=a, beta=b
    )


def _hybrid(title: str, loss: EagerLoss, **settings: Any) -> Member:
    return Member(f"hybrid, {title}", ObjectiveConfig(**settings), loss, is_hybrid=True)


def _half(*ignored: object) -> float:
    return 0.5


PURE = "forward_kl"
"""The member to which the hybrids are compared."""

FAMILY = {
    PURE: _soft("forward KL", eager.forward_kl),
    "reverse_kl": _soft("reverse KL", eager.reverse_kl, soft="reverse_kl"),
    "forward_kl_t2": _soft(
        "forward KL at T = 2", eager.at_temperature(eager.forward_kl, 2.0), temperature=2.0
    ),
    "reverse_kl_t2": _soft(
        "reverse KL at T = 2", eager.at_temperature(eager.reverse_kl, 2.0),
        soft="reverse_kl", temperature=2.0,
    ),
    "adaptive_kl": _soft("adaptive KL", eager.adaptive_kl, soft="adaptive_kl"),
    "entropy_regularizer": _soft(
        "forward KL - 0.1 H(q)", eager.entropy_regularized, entropy_regularizer=0.1
    ),
    "alpha_beta": _alpha_beta(0.5, 0.3),
    "alpha_beta_alpha": _alpha_beta(0.6, 0.0),
    "alpha_beta_beta": _alpha_beta(0.0, 0.6),
    "alpha_beta_opposite": _alpha_beta(0.3, -0.3),
    "alpha_beta_zero": _alpha_beta(0.0, 0.0),
    "jensen_shannon": _soft("Jensen-Shannon", eager.jensen_shannon, soft="jensen_shannon"),
    "skew_forward_kl": _soft("skew forward KL", eager.skew_forward_kl, soft="skew_forward_kl"),
    "skew_reverse_kl": _soft("skew reverse KL", eager.skew_reverse_kl, soft="skew_reverse_kl"),
    "total_variation": _soft("total variation", eager.total_variation, soft="total_variation"),
    "hybrid_static": _hybrid("static", eager.hybrid(_half), weighting="static"),
    "hybrid_confidence": _hybrid(
        "confidence", eager.hybrid(eager.confidence_of_maximum), weighting="confidence"
    ),
    "hybrid_confidence_label": _hybrid(
        "confidence of the label", eager.hybrid(eager.confidence_of_label),
        weighting="confidence", confidence="label",
    ),
    "hybrid_entropy": _hybrid("entropy", eager.hybrid(eager.entropy), weighting="entropy"),
    "hybrid_tsallis": _hybrid(
        "Tsallis entropy", eager.hybrid(eager.tsallis), weighting="entropy", entropy="tsallis"
    ),
    "hybrid_wsl": _hybrid("wsl", eager.hybrid(eager.wsl, hard_weight=1.0), weighting="wsl"),
    "hybrid_risk_guided": _hybrid(
        "risk-guided", eager.hybrid(_half, has_risk=True), weighting="static", hard="risk_guided"
    ),
    "hard_data": _hard("hard, data", eager.cross_entropy),
    "hard_teacher_argmax": _hard(
        "hard, teacher argmax", eager.cross_entropy_to_argmax, hard_label="teacher_argmax"
    ),
}  # fmt: skip
