"""The hybrid objective: per-token statistics in, per-token losses out.

Plain PyTorch on [N] vectors; knows neither logits nor process groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron.objectives.config import ObjectiveConfig
from bgkd_megatron.objectives.divergence import DIVERGENCES
from bgkd_megatron.objectives.metrics import STUDENT_METRICS, TEACHER_METRICS
from bgkd_megatron.objectives.named import NamedObjective, named_objective
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.objectives.weighting import WEIGHTINGS, Weighting
from bgkd_megatron.statistics import Feature, VocabStats

__all__ = ["HybridObjective"]

_NO_FEATURES = Feature(0)


class HybridObjective:
    """loss = w * soft + (1 - w) * hard for each token, as `config` says.

    Sum the losses and divide by the number of valid tokens of the global batch: one denominator
    for both terms, so the result depends on neither micro-batches nor ranks.

    vocab_size: real (unpadded) vocabulary common to teacher and student, at least 2.
    weighting: a weighting of your own in place of `config.weighting`.
    extra_features: for statistics that neither the loss nor its usual metrics need.
    Raises ValueError for an impossible vocab_size, TypeError for a weighting that is none.
    """

    features: Feature
    """What vocab_stats must compute for the loss and for the metrics.
    Without labels leave out Feature.LABEL: only hard_label="data" needs it."""
    power_exponent: float

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
        if weighting is not None or config.has_soft_term:
            self._divergence = DIVERGENCES[config.soft](config)
            self.features |= self._weighting.features | self._divergence.features
        if weighting is not None or config.needs_teacher:
            self.features |= TEACHER_METRICS
        if self.features.reads_teacher:
            self.features |= Feature.TEACHER
        self.power_exponent = self._weighting.power_exponent

    def named(self, progress: float) -> NamedObjective | None:
        """What the kernels need to evaluate the objective; None where they cannot: a weighting of
        your own, no soft term, or a class that computes otherwise."""
        if self._is_other or self._is_own or self._divergence is None:
            return None
        return named_objective(self.config, self.vocab_size, _checked_progress(progress))

    @property
    def needs_labels(self) -> bool:
        """Whether there is no loss without the data's labels."""
        return self.config.hard_label == "data" and not self._is_other

    @property
    def _is_other(self) -> bool:
        """Whether this is a class that computes otherwise."""
        return type(self).__call__ is not HybridObjective.__call__

    @property
    def temperature(self) -> float:
        """Temperature of the softened statistics."""
        return self.config.temperature

    def __call__(self, stats: VocabStats, progress: float = 0.0) -> TokenLosses:
        """Losses of the tokens of `stats`; gradients flow into the student's statistics only.

        progress: part of the run that is done, in [0, 1].
        Raises ValueError for another progress, when a statistic is missing, or when a weighting of
        your own returns another shape or device (TypeError: another type than floating).  Whether
        its values are in [0, 1] is not looked at: that would wait for the device.
        """
        progress = _checked_progress(progress)
        hard = self._hard(stats)
        if self._divergence is None:
            soft = soft_weight = torch.zeros_like(hard.detach())
            loss = hard
        else:
            soft = self._divergence.value(stats)
            with torch.no_grad():
                soft_weight = _checked(self._weighting.soft_weight(stats, progress), hard)
                # Masked before it is multiplied: 0 * NaN would put NaN into the gradient.
                soft_weight = torch.where(stats.valid, soft_weight, 0.0)
            loss = _share(soft_weight, soft) + _share(1.0 - soft_weight, hard)
        # Statistics of rows that are not valid are 0, so both branches of `where` are finite.
        return TokenLosses(
            loss=torch.where(stats.valid, loss, 0.0),
            hard=torch.where(stats.valid, hard, 0.0),
            soft=torch.where(stats.valid, soft, 0.0),
            soft_weight=soft_weight,
        )

    def _hard(self, stats: VocabStats) -> Tensor:
        """-log q(label), [N]."""
        if self.config.hard_label == "data":
            return -stats.require("student_label_logprob")
        return -stats.require("student_logprob_at_teacher_argmax")


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


def _share(weight: Tensor, term: Tensor) -> Tensor:
    """weight * term, with 0 * inf = 0: a term without weight cannot spoil the loss."""
    return torch.where(weight == 0.0, 0.0, weight * term)
