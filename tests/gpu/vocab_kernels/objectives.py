"""csrc/core/objective.h in float64: losses, and d loss / d statistic."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from .bounded import EPSILON, Bounded, finite, masked
from .contract import Feature, HardLabel, SoftTerm, SoftWeight
from .formulas import Model
from .gradients import stats_gradient
from .headers import structs

STATIC_WEIGHT = float(np.float32(0.3))
ENTROPY_SCALE = float(np.float32(0.2))  # large enough that some weights are clamped to 1


@dataclass(frozen=True)
class Objective:
    soft: SoftTerm
    weight: SoftWeight = SoftWeight.STATIC
    hard: HardLabel = HardLabel.DATA
    softened: bool = False

    @property
    def features(self) -> Feature:
        """objective_features, with a teacher."""
        features = Feature.TEACHER
        if self.hard == HardLabel.DATA:
            features |= Feature.LABEL
        if self.soft == SoftTerm.NONE:
            return features
        if self.softened:
            features |= Feature.SOFTENED
        else:
            features |= Feature.FORWARD if self.soft == SoftTerm.FORWARD else Feature.REVERSE
        if self.weight == SoftWeight.SHANNON:
            features |= Feature.TEACHER_ENTROPY
        if self.weight == SoftWeight.TSALLIS:
            features |= Feature.POWER
        return features

    def soft_scale(self, inv_temperature: float) -> float:
        return float(np.float32(inv_temperature**-2)) if self.softened else 1.0

    def params(self, inv_temperature: float) -> ctypes.Structure:
        return structs.ObjectiveParams(
            self.soft, self.softened, self.soft_scale(inv_temperature), self.weight, STATIC_WEIGHT,
            ENTROPY_SCALE, self.hard,
        )  # fmt: skip

    @property
    def soft_stat(self) -> str:
        return ("soft_" if self.softened else "") + (
            "forward_kl" if self.soft == SoftTerm.FORWARD else "reverse_kl"
        )

    @property
    def hard_stat(self) -> str:
        by_data = self.hard == HardLabel.DATA
        return "student_at_label" if by_data else "student_at_teacher_argmax"


FORWARD, REVERSE = SoftTerm.FORWARD, SoftTerm.REVERSE
ARGMAX = HardLabel.TEACHER_ARGMAX
# every soft term, weighting and hard label
OBJECTIVES = {
    "hard": Objective(SoftTerm.NONE),
    "forward": Objective(FORWARD),
    "reverse shannon argmax": Objective(REVERSE, SoftWeight.SHANNON, ARGMAX),
    "forward tsallis": Objective(FORWARD, SoftWeight.TSALLIS),
    "reverse confidence": Objective(REVERSE, SoftWeight.CONFIDENCE),
    "softened forward confidence": Objective(FORWARD, SoftWeight.CONFIDENCE, softened=True),
    "softened reverse tsallis argmax": Objective(
        REVERSE, SoftWeight.TSALLIS, ARGMAX, softened=True
    ),
}


class Evaluated:
    """An objective on all rows: losses [4, N], d loss / d statistic [N], the gradient [N, V]."""

    def __init__(self, objective: Objective, model: Model) -> None:
        stats, scale = model.finished(), objective.soft_scale(model.inv_temperature)
        skipped = model.skipped
        weight = _soft_weight(objective, stats)
        if objective.soft == SoftTerm.NONE:
            soft = Bounded(np.zeros(len(skipped)), np.zeros(len(skipped)))
        else:
            term = stats[objective.soft_stat]
            soft = Bounded(scale * term.value, scale * term.error)
        hard = Bounded(-stats[objective.hard_stat].value, stats[objective.hard_stat].error)
        with np.errstate(invalid="ignore"):
            loss = np.where(weight.value != 0, weight.value * soft.value, 0.0) + np.where(
                weight.value != 1, (1 - weight.value) * hard.value, 0.0
            )
        size = np.abs(finite(soft.value)) + np.abs(finite(hard.value))
        error = soft.error + hard.error + size * (weight.error + 4 * EPSILON)
        rows = [Bounded(loss, error), hard, soft, weight]
        self.losses = [masked(row, skipped) for row in rows]
        upstream = {objective.hard_stat: Bounded(weight.value - 1, weight.error + EPSILON)}
        if objective.soft:
            size = scale * (weight.error + 2 * EPSILON * np.abs(weight.value))
            upstream[objective.soft_stat] = Bounded(scale * weight.value, size)
        self.upstream = {name: masked(up, skipped) for name, up in upstream.items()}
        # linear in w: what an error of w does is seen from the two terms alone
        soft_part = stats_gradient(
            model, {objective.soft_stat: np.full(len(skipped), scale)} if objective.soft else {}
        )
        hard_part = stats_gradient(model, {objective.hard_stat: np.full(len(skipped), -1.0)})
        w, w_error = weight.value[:, None], weight.error[:, None]
        size = np.abs(finite(soft_part.value)) + np.abs(finite(hard_part.value))
        self.gradient = Bounded(
            w * soft_part.value + (1 - w) * hard_part.value,
            w * soft_part.error + (1 - w) * hard_part.error + size * (w_error + 4 * EPSILON),
        )


def _soft_weight(objective: Objective, stats: dict[str, Bounded]) -> Bounded:
    some = stats["student_max"].value
    if objective.soft == SoftTerm.NONE:
        return Bounded(np.zeros_like(some), np.zeros_like(some))
    if objective.weight == SoftWeight.STATIC:
        return Bounded(np.full_like(some, STATIC_WEIGHT), np.zeros_like(some))
    if objective.weight == SoftWeight.CONFIDENCE:
        log_sum = stats["teacher_sum"]
        value, error = -np.expm1(-log_sum.value), np.exp(-log_sum.value) * log_sum.error
    elif objective.weight == SoftWeight.SHANNON:
        value, error = (ENTROPY_SCALE * x for x in _pair(stats["teacher_entropy"]))
    else:
        power = stats["teacher_power_sum"]
        value, error = ENTROPY_SCALE * (power.value - 1), ENTROPY_SCALE * power.error
    return Bounded(np.clip(value, 0, 1), error + 3 * EPSILON * np.abs(value))


def _pair(x: Bounded) -> tuple[np.ndarray, np.ndarray]:
    return x.value, np.broadcast_to(x.error, x.value.shape)
