"""csrc/core/objective.h in float64: losses, and d loss / d statistic."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass

import numpy as np

from .bounded import EPSILON, Bounded, finite, masked, weighted
from .contract import Feature, HardLabel, SoftTerm, Weighting
from .formulas import Model
from .gradients import stats_gradient
from .headers import structs

ADAPTIVE_MU = 0.5
ENTROPY_MAXIMUM = 5.0  # small enough that some weights are clamped to 1
LEAST_LOGPROB, LEAST_SIZE, LARGEST_RATIO = np.log(1e-8), 1e-8, 10.0  # of WSL

Affine = tuple[float, float]
U, REST = (0.0, 1.0), (1.0, -1.0)

_SOFT = {
    SoftTerm.NONE: Feature(0),
    SoftTerm.FORWARD: Feature.FORWARD,
    SoftTerm.REVERSE: Feature.REVERSE,
    SoftTerm.ADAPTIVE: Feature.FORWARD | Feature.REVERSE | Feature.STUDENT_ENTROPY
    | Feature.TEACHER_ENTROPY,
}  # fmt: skip
_WEIGHTING = {
    Weighting.CONSTANT: Feature(0),
    Weighting.CONFIDENCE: Feature(0),
    Weighting.LABEL_CONFIDENCE: Feature.LABEL,
    Weighting.SHANNON: Feature.TEACHER_ENTROPY,
    Weighting.TSALLIS: Feature.POWER,
    Weighting.WSL: Feature.LABEL,
}


@dataclass(frozen=True)
class Objective:
    soft: SoftTerm
    weighting: Weighting = Weighting.CONSTANT
    hard: HardLabel = HardLabel.DATA
    softened: bool = False
    detach: bool = False
    # (offset, slope) of u; exact in float32
    soft_weight: Affine = (0.25, 0.5)
    hard_weight: Affine = (0.875, -0.5)
    regularizer: float = 0.0

    @property
    def features(self) -> Feature:
        """objective_features, with a teacher."""
        features = Feature.TEACHER | _WEIGHTING[self.weighting]
        features |= Feature.SOFTENED if self.softened else _SOFT[self.soft]
        if self.hard == HardLabel.DATA:
            features |= Feature.LABEL
        if self.regularizer:
            features |= Feature.STUDENT_ENTROPY
        return features

    def squared_temperature(self, inv_temperature: float) -> float:
        return float(np.float32(inv_temperature**-2)) if self.softened else 1.0

    def params(self, inv_temperature: float) -> ctypes.Structure:
        return structs.ObjectiveParams(
            self.soft, self.softened, self.squared_temperature(inv_temperature), ADAPTIVE_MU,
            self.detach, self.weighting, ENTROPY_MAXIMUM, structs.AffineWeight(*self.soft_weight),
            structs.AffineWeight(*self.hard_weight), self.hard, self.regularizer,
        )  # fmt: skip

    @property
    def arguments(self) -> tuple[float, ...]:
        """The last ones of the operators."""
        return (
            int(self.soft), self.softened, ADAPTIVE_MU, self.detach, int(self.weighting),
            ENTROPY_MAXIMUM, *self.soft_weight, *self.hard_weight, int(self.hard), self.regularizer,
        )  # fmt: skip

    @property
    def kl_stat(self) -> str:
        return ("soft_" if self.softened else "") + f"{self.soft.name.lower()}_kl"

    @property
    def hard_stat(self) -> str:
        by_data = self.hard == HardLabel.DATA
        return "student_at_label" if by_data else "student_at_teacher_argmax"


FORWARD, REVERSE, ADAPTIVE = SoftTerm.FORWARD, SoftTerm.REVERSE, SoftTerm.ADAPTIVE
ARGMAX = HardLabel.TEACHER_ARGMAX
# every soft term, weighting and hard label, and what a weight can be of u
OBJECTIVES = {
    "hard": Objective(SoftTerm.NONE),
    "hard, regularized": Objective(SoftTerm.NONE, hard=ARGMAX, regularizer=0.125),
    "forward": Objective(FORWARD),
    "forward shannon, regularized": Objective(FORWARD, Weighting.SHANNON, regularizer=0.125),
    "reverse shannon argmax": Objective(
        REVERSE, Weighting.SHANNON, ARGMAX, soft_weight=U, hard_weight=REST
    ),
    "forward tsallis": Objective(FORWARD, Weighting.TSALLIS),
    # Not U: a row that excludes its label has a hard term that only a weight of 0 leaves out.
    "reverse confidence": Objective(
        REVERSE, Weighting.CONFIDENCE, soft_weight=REST, hard_weight=(0.125, 0.875)
    ),
    "forward label": Objective(FORWARD, Weighting.LABEL_CONFIDENCE, ARGMAX),
    "reverse wsl": Objective(
        REVERSE, Weighting.WSL, soft_weight=(0.0, 1.5), hard_weight=(1.0, 0.0)
    ),
    "adaptive": Objective(ADAPTIVE),
    "adaptive wsl, detached": Objective(ADAPTIVE, Weighting.WSL, detach=True),
    "adaptive label argmax, regularized": Objective(
        ADAPTIVE, Weighting.LABEL_CONFIDENCE, ARGMAX, soft_weight=(0.0, 8.0), hard_weight=REST,
        regularizer=0.125,
    ),
    "softened forward confidence": Objective(FORWARD, Weighting.CONFIDENCE, softened=True),
    "softened reverse tsallis argmax": Objective(
        REVERSE, Weighting.TSALLIS, ARGMAX, softened=True
    ),
}  # fmt: skip


LOSSES = ("loss", "hard", "soft", "soft weight", "hard weight")


class Evaluated:
    """An objective on all rows: losses [5, N], d loss / d statistic [N], the gradient [N, V]."""

    def __init__(self, objective: Objective, model: Model) -> None:
        stats, skipped = model.finished(), model.skipped
        u = _u(objective, stats)
        w_s, w_h = _affine(objective.soft_weight, u), _affine(objective.hard_weight, u)
        soft, derivatives = _soft(objective, stats, model.inv_temperature)
        hard = Bounded(-stats[objective.hard_stat].value, stats[objective.hard_stat].error)
        loss = _times(w_s, soft) + _times(w_h, hard)
        upstream = {name: _times(w_s, derivative) for name, derivative in derivatives.items()}
        upstream[objective.hard_stat] = Bounded(-w_h.value, w_h.error)
        if objective.regularizer:
            c = Bounded(np.full(len(skipped), -objective.regularizer))
            loss = loss + _times(c, stats["student_entropy"])
            of_soft = upstream.get("student_entropy", Bounded(np.zeros(len(skipped))))
            upstream["student_entropy"] = of_soft + Bounded(c.value, 2 * EPSILON * -c.value)
        self.losses = [masked(row, skipped) for row in (loss, hard, soft, w_s, w_h)]
        self.upstream = {name: masked(up, skipped) for name, up in upstream.items()}
        self.gradient = Bounded(np.zeros(model.z.shape))
        for name, up in self.upstream.items():
            part = stats_gradient(model, {name: np.ones(len(skipped))})
            rows = Bounded(up.value[:, None], np.asarray(up.error)[:, None])
            self.gradient = self.gradient + _times(rows, part)


def _times(weight: Bounded, x: Bounded) -> Bounded:
    """weight * x with 0 * inf = 0; with roundings of this product and of sums that it is in."""
    value = weighted(weight.value, x.value)
    size = np.abs(finite(x.value)) * weight.error + weighted(np.abs(weight.value), x.error)
    return Bounded(value, size + 4 * EPSILON * np.abs(finite(value)))


def _affine(weight: Affine, u: Bounded) -> Bounded:
    offset, slope = weight
    value = offset + slope * u.value
    size = abs(offset) + np.abs(slope * u.value)
    return Bounded(value, abs(slope) * np.asarray(u.error) + 2 * EPSILON * size)


def _soft(
    objective: Objective, stats: dict[str, Bounded], inv_temperature: float
) -> tuple[Bounded, dict[str, Bounded]]:
    """The soft term and its derivatives."""
    ones = np.ones_like(stats["student_max"].value)
    if objective.soft == SoftTerm.NONE:
        return Bounded(0 * ones), {}
    if objective.soft != ADAPTIVE:
        scale, term = objective.squared_temperature(inv_temperature), stats[objective.kl_stat]
        soft = Bounded(scale * term.value, scale * term.error)
        return soft, {objective.kl_stat: Bounded(scale * ones)}
    forward, reverse = stats["forward_kl"], stats["reverse_kl"]
    of_student, of_teacher = stats["student_entropy"], stats["teacher_entropy"]
    gap = ADAPTIVE_MU * (of_student.value - of_teacher.value)
    gap_error = ADAPTIVE_MU * (of_student.error + of_teacher.error) + 2 * EPSILON * np.abs(gap)
    share = 1 / (1 + np.exp(-gap))
    slope = share * (1 - share)  # and that of `slope` is not larger
    error = slope * gap_error + 8 * EPSILON * share
    a, rest = Bounded(share, error), Bounded(1 - share, error + EPSILON)
    derivatives = {"forward_kl": a, "reverse_kl": rest}
    if not objective.detach:
        difference = forward + Bounded(-reverse.value, reverse.error)
        of_entropy = Bounded(ADAPTIVE_MU * slope, ADAPTIVE_MU * (error + 4 * EPSILON * slope))
        derivatives["student_entropy"] = _times(of_entropy, difference)
    return _times(a, forward) + _times(rest, reverse), derivatives


def _u(objective: Objective, stats: dict[str, Bounded]) -> Bounded:
    match objective.weighting:
        case Weighting.CONSTANT:
            return Bounded(np.ones_like(stats["student_max"].value), 0.0)
        case Weighting.CONFIDENCE:
            value, error = _one_minus_exp(-stats["teacher_sum"].value, stats["teacher_sum"].error)
        case Weighting.LABEL_CONFIDENCE:
            log_p = stats["teacher_at_label"]
            value, error = _one_minus_exp(log_p.value, log_p.error)
        case Weighting.SHANNON:
            entropy = stats["teacher_entropy"]
            value, error = entropy.value / ENTROPY_MAXIMUM, entropy.error / ENTROPY_MAXIMUM
        case Weighting.TSALLIS:
            power = stats["teacher_power_sum"]
            value = (power.value - 1) / ENTROPY_MAXIMUM
            error = power.error / ENTROPY_MAXIMUM
        case Weighting.WSL:
            value, error = _omega(stats["student_at_label"], stats["teacher_at_label"])
    return Bounded(np.clip(value, 0, 1), error + 3 * EPSILON * np.abs(value))


def _one_minus_exp(
    log: np.ndarray, error: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray | float]:
    return -np.expm1(log), np.exp(log) * error


def _omega(student: Bounded, teacher: Bounded) -> tuple[np.ndarray, np.ndarray]:
    """It is monotonous in both logarithms: its error is that of a corner."""

    def at(student_sign: float, teacher_sign: float, rounding: float) -> np.ndarray:
        s = np.maximum(student.value + student_sign * student.error, LEAST_LOGPROB)
        t = np.clip(teacher.value + teacher_sign * teacher.error, LEAST_LOGPROB, -LEAST_SIZE)
        ratio = np.clip(s / t * (1 + rounding * EPSILON), -LARGEST_RATIO, LARGEST_RATIO)
        return np.clip(-np.expm1(-ratio), 0, 1)

    value = at(0, 0, 0)
    corners = itertools.product((-1.0, 1.0), (-1.0, 1.0), (-4.0, 4.0))
    return value, np.max([np.abs(at(*corner) - value) for corner in corners], axis=0)
