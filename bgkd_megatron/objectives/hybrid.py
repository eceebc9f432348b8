"""The hybrid objective: per-token statistics in, per-token losses out.

Plain PyTorch on [N] vectors; knows neither logits nor process groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron.fdivergence import FDivergence
from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.divergence import DIVERGENCES
from bgkd_megatron.objectives.metrics import STUDENT_METRICS, TEACHER_METRICS
from bgkd_megatron.objectives.named import NamedObjective, named_objective
from bgkd_megatron.objectives.risk_guided import Sequences, risk_guided
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.objectives.weighting import WEIGHTINGS, Weighting
from bgkd_megatron.statistics import Feature, VocabStats

__all__ = ["HybridObjective"]

_NO_FEATURES = Feature(0)


class HybridObjective:
    """loss = w_s * soft + w_h * hard for each token, as `config` says.

    Sum the losses and divide by the number of valid tokens of the global batch: one denominator
    for both terms, so the result depends on neither micro-batches nor ranks.

    vocab_size: real (unpadded) vocabulary common to teacher and student, at least 2.
    weighting: a weighting of your own in place of `config.weighting`.
    extra_features: for statistics that neither the loss nor its usual metrics need.
    Raises ValueError for an impossible vocab_size, TypeError for a weighting that is none.
    """

    features: Feature
    """What vocab_stats must compute for the loss and for the metrics.
    Without labels leave out Feature.LABEL: only a loss that reads the label needs it."""
    power_exponent: float
    fdivergence: FDivergence | None
    """The second sweep that the soft term needs."""

    def __init__(
        self,
        config: ObjectiveConfig,
        vocab_size: int,
        weighting: Weighting | None = None,
        *,
        extra_features: Feature = _NO_FEATURES,
    ) -> None:
        if vocab_size < 2:
            raise ValueError(f"HybridObjective: vocab_size must be at least 2, got {vocab_size}")
        if weighting is not None and not isinstance(weighting, Weighting):
            raise TypeError(
                "HybridObjective: weighting must be a Weighting(features, function), which says "
                f"what the function reads, got {type(weighting).__name__}"
            )
        self.config = config
        self.vocab_size = vocab_size
        self._is_own = weighting is not None
        self._weighting = weighting or WEIGHTINGS[config.weighting](config, vocab_size)
        self._divergence = None
        self.features = STUDENT_METRICS | extra_features
        self.fdivergence = None
        if weighting is not None or config.has_soft_term:
            self._divergence = DIVERGENCES[config.soft](config)
            self.fdivergence = config.fdivergence
            self.features |= self._weighting.features | self._divergence.features
        if config.couples_positions or config.draws_labels:
            self.features |= Feature.LABEL
        if weighting is not None or config.needs_teacher:
            self.features |= TEACHER_METRICS
        if self.features.reads_teacher:
            self.features |= Feature.TEACHER
        self.power_exponent = self._weighting.power_exponent

    def named(self, progress: float) -> NamedObjective | None:
        """What the kernels need to evaluate the objective; None where they cannot: a weighting of
        your own, a class that computes otherwise, or what `named_objective` leaves out."""
        if self._is_other or self._is_own:
            return None
        return named_objective(self.config, self.vocab_size, _checked_progress(progress))

    @property
    def needs_labels(self) -> bool:
        """Whether there is no loss without the data's labels."""
        if self._is_other or self.config.draws_labels:
            return False
        reads_label = self._divergence is not None and Feature.LABEL in self._weighting.features
        return self.config.hard_label == "data" or reads_label

    @property
    def _is_other(self) -> bool:
        """Whether this is a class that computes otherwise."""
        return type(self).__call__ is not HybridObjective.__call__

    def temperature(self, progress: float = 0.0) -> float:
        """Temperature of the softened statistics at this part of the run."""
        return self.config.temperature_at(_checked_progress(progress))

    def __call__(
        self, stats: VocabStats, progress: float = 0.0, sequences: Sequences | None = None
    ) -> TokenLosses:
        """Losses of the tokens of `stats`; gradients flow into the student's statistics only.

        progress: part of the run that is done, in [0, 1].
        sequences: how the tokens lie in sequences; hard="risk_guided" needs it.
        Raises ValueError for another progress, when a statistic is missing, or when a weighting of
        your own returns another shape or device (TypeError: another type than floating).  Whether
        its values are in [0, 1] is not looked at: that would wait for the device.
        """
        progress = _checked_progress(progress)
        hard = self._hard(stats, sequences)
        soft = torch.zeros_like(hard.detach())
        with torch.no_grad():
            soft_weight, hard_weight = self._weights(stats, progress, hard)
        if self._divergence is not None:
            soft = self._divergence.value(_constant(stats, soft_weight == 0.0), progress)
        loss = _share(soft_weight, soft) + _share(hard_weight, hard)
        if self.config.entropy_regularizer:
            loss = loss - self.config.entropy_regularizer * stats.require("student_entropy")
        # Statistics of rows that are not valid are 0, so both branches of `where` are finite.
        return TokenLosses(
            loss=torch.where(stats.valid, loss, 0.0),
            hard=torch.where(stats.valid, hard, 0.0),
            soft=torch.where(stats.valid, soft, 0.0),
            soft_weight=soft_weight,
            hard_weight=hard_weight,
        )

    def _hard(self, stats: VocabStats, sequences: Sequences | None) -> Tensor:
        """The hard term, [N]."""
        name = "student_label_logprob"
        if self.config.hard_label == "teacher_argmax":
            name = "student_logprob_at_teacher_argmax"
        if not self.config.couples_positions:
            return -stats.require(name)
        if sequences is None:
            raise ValueError(
                "hard='risk_guided' needs to know how the tokens lie in sequences: pass a "
                "SequenceLayout"
            )
        return risk_guided(stats, stats.require(name), sequences, self.config)

    def _weights(self, stats: VocabStats, progress: float, hard: Tensor) -> tuple[Tensor, Tensor]:
        """w_s and w_h, [N]."""
        if self._divergence is None:
            soft, rest = torch.zeros_like(hard), None
            if self.config.hard_weight is not None:
                rest = torch.full_like(hard, self.config.hard_weight)
        else:
            weights = self._weighting.weights(stats, progress)
            if isinstance(weights, tuple):
                soft, rest = (_checked(weight, hard) for weight in weights)
            else:
                soft, rest = _checked(weights, hard), None
        rest = 1.0 - soft if rest is None else rest
        # Masked before they are multiplied: 0 * NaN would put NaN into the gradient.
        soft = torch.where(stats.valid, self.config.soft_scale * soft, 0.0)
        return soft, torch.where(stats.valid, rest, 0.0)


def _checked_progress(progress: float) -> float:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1] (steps done / steps), got {progress}")
    return progress


def _checked(weight: Tensor, term: Tensor) -> Tensor:
    """A weighting's weight in the dtype of `term`; [N, 1] would broadcast to [N, N]."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"the weighting must return a floating-point tensor [N], got {kind}")
    if weight.shape != term.shape or weight.device != term.device:
        raise ValueError(
            f"the weighting must return one weight per token, of shape {list(term.shape)} on "
            f"{term.device}, got {list(weight.shape)} on {weight.device}"
        )
    return weight.to(term.dtype)


def _constant(stats: VocabStats, rows: Tensor) -> VocabStats:
    """`stats` without a gradient in these rows: what would come back to an infinite statistic there
    may be NaN."""
    values = stats._asdict().items()
    varying = {name: v for name, v in values if v is not None and v.requires_grad}
    return stats._replace(**{n: torch.where(rows, v.detach(), v) for n, v in varying.items()})


def _share(weight: Tensor, term: Tensor) -> Tensor:
    """weight * term, with 0 * inf = 0: a term without weight cannot spoil the loss."""
    return torch.where(weight == 0.0, 0.0, weight * term)
