"""The validated configuration of a hybrid hard/soft objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.objectives.presets import PRESETS
from bgkd_megatron.settings import Section

__all__ = ["ObjectiveConfig"]

# Below this distance from 1 the float32 rounding of sum_v p_v^gamma (~1e-7) exceeds 1e-5 of the
# weight, whose denominator shrinks like |1 - gamma| log V.
_TSALLIS_MIN_DISTANCE = 1e-3

# A softened KL is a difference of sums of which float32 keeps about 1e-6, and T^2 magnifies that.
# Measured against float64 on 8 rows of 151,936 normal logits that differ by 0.5 between the models,
# T^2 KL = 0.25: off by 3e-6 at T = 2, 1e-4 at 10, 6e-4 at 30, 8e-3 at 100, 7e-2 at 300, 1 at 1000;
# the gradient by 2e-6, 1e-5, 4e-5, 1e-4, 4e-4, 1e-3 of its norm.  Above T = 10 the exact value no
# longer changes: it tends to half the variance of the logit differences.
_MAX_TEMPERATURE = 100.0
# A logit 1 behind the maximum weighs e^-100 there: both distributions are their argmax.
_MIN_TEMPERATURE = 0.01

_KLS = ("forward_kl", "reverse_kl")
_MIXTURES = {
    "jensen_shannon": (FKind.JENSEN_SHANNON, 0.5),
    "skew_forward_kl": (FKind.SKEW_FORWARD, 0.1),
    "skew_reverse_kl": (FKind.SKEW_REVERSE, 0.1),
}
# Settings that are read for some values of another one alone.
_READ_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "alpha": ("soft", ("alpha_beta",)),
    "beta": ("soft", ("alpha_beta",)),
    "mixture": ("soft", tuple(_MIXTURES)),
    "adaptive_mu": ("soft", ("adaptive_kl",)),
    "adaptive_detach": ("soft", ("adaptive_kl",)),
    "skew_cross_term": ("soft", ("skew_forward_kl",)),
    "risk_alpha": ("hard", ("risk_guided",)),
    "risk_gamma": ("hard", ("risk_guided",)),
    "risk_terminal": ("hard", ("risk_guided",)),
    "soft_weight": ("weighting", ("static", "curriculum", "wsl")),
    "hard_weight": ("weighting", ("static",)),
    "confidence": ("weighting", ("confidence",)),
    "entropy": ("weighting", ("entropy",)),
    "tsallis_gamma": ("entropy", ("tsallis",)),
    "curriculum_fraction": ("weighting", ("curriculum",)),
}


class ObjectiveConfig(Section):
    """loss = w_s * soft + w_h * hard - entropy_regularizer * H(q), per token; the weights carry no
    gradient.  docs/objectives.md has the formula of every setting.

    preset: not a field but a name from `presets.PRESETS`, or a list of them, whose settings are the
        defaults.
    Raises pydantic.ValidationError (a ValueError) that names the field, the accepted values and
    what came.  A setting that another one leaves unread must have its default; a preset's
    is left out.
    Source: arXiv 2605.26246, section "hybrid supervision".
    """

    # ---- the soft term
    soft: Literal[
        "forward_kl",
        "reverse_kl",
        "alpha_beta",
        "adaptive_kl",
        "jensen_shannon",
        "skew_forward_kl",
        "skew_reverse_kl",
        "total_variation",
    ] = "forward_kl"
    """Distance of the student q to the teacher p."""

    temperature: float = Field(default=1.0, ge=_MIN_TEMPERATURE, le=_MAX_TEMPERATURE)
    """T of forward_kl and reverse_kl, which become T^2 KL at temperature T.  Hard term and weights
    always use T = 1."""

    temperature_end: float | None = Field(default=None, ge=_MIN_TEMPERATURE, le=_MAX_TEMPERATURE)
    """T at the end of the run, if it changes: linearly, from `temperature`."""

    alpha: float = 1.0
    """Of alpha_beta.  (1, 0) is forward_kl, (0, 1) reverse_kl."""

    beta: float = 0.0
    """Of alpha_beta.  alpha, beta and alpha + beta must each be 0 or of a size in [0.01, 10]."""

    mixture: float | None = Field(default=None, gt=0.0, lt=1.0)
    """lambda of jensen_shannon (default 0.5) and of the skew KLs (default 0.1)."""

    adaptive_mu: float = Field(default=0.5, gt=0.0)
    """Of adaptive_kl: weight of the forward KL = sigmoid(mu (H(q) - H(p)))."""

    adaptive_detach: bool = False
    """Of adaptive_kl: whether its weight is a constant; else a gradient flows through H(q)."""

    skew_cross_term: bool = False
    """skew_forward_kl without the teacher's entropy: another value, the same gradient."""

    soft_scale: float = Field(default=1.0, gt=0.0)
    """Multiplies the soft term's part of the loss.  Another number than 1 is for imitating a
    trainer whose terms have different denominators."""

    # ---- the hard term
    hard: Literal["cross_entropy", "risk_guided"] = "cross_entropy"
    """-log q(token), or that and the chi-square risk of the next position."""

    hard_label: Literal["data", "teacher_argmax", "teacher_sample", "random"] = "data"
    """The token: the data's label, the teacher's likeliest one, one drawn from the teacher for each
    step, or any one, as a control."""

    risk_alpha: float = Field(default=0.1, gt=0.0)
    """Of risk_guided: alpha / 4 multiplies the squared log-risk."""

    risk_gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Of risk_guided: discount of a document's later tokens, and of the next position's value."""

    risk_terminal: float = Field(default=1.0, ge=0.0)
    """Of risk_guided with risk_gamma < 1: multiplies the term of a document's last token."""

    # ---- the weights
    weighting: Literal["static", "confidence", "entropy", "curriculum", "wsl"] = "entropy"
    """How w_s depends on the token or on the progress; w_h = 1 - w_s but for hard_weight, wsl."""

    soft_weight: float = Field(default=0.5, ge=0.0)
    """w_s of static, the final one of curriculum, the factor of wsl.  At most 1 unless w_h is
    given."""

    hard_weight: float | None = Field(default=None, ge=0.0)
    """w_h of static, if it is not 1 - w_s."""

    confidence: Literal["maximum", "label"] = "maximum"
    """Of the confidence weighting: w_s = 1 - max p, or 1 - p(label)."""

    entropy: Literal["shannon", "tsallis"] = "shannon"
    """Of the entropy weighting: w_s = H(p) / log V, or (sum p^gamma - 1) / (V^(1 - gamma) - 1)."""

    tsallis_gamma: float = Field(default=0.1, ge=1e-3, le=100.0)
    """Exponent gamma of the Tsallis entropy; small values look at the teacher's tail."""

    curriculum_fraction: float = Field(default=0.2, gt=0.0, le=1.0)
    """Part of the run over which the curriculum raises w_s from 0 to `soft_weight`."""

    reversed: bool = False
    """The control: w_s and w_h of confidence and entropy change places, the curriculum falls from
    1, wsl takes 1 - omega."""

    # ---- the rest
    entropy_regularizer: float = Field(default=0.0, ge=0.0)
    """Factor of the student's entropy, which is subtracted from the loss."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or "preset" not in settings:
            return settings
        settings = dict(settings)
        names = settings.pop("preset")
        merged: dict[str, Any] = {}
        for name in names if isinstance(names, list | tuple) else [names]:
            if not isinstance(name, str) or name not in PRESETS:
                raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
            merged |= PRESETS[name]
        merged |= settings
        for name, (chooser, choices) in _READ_WITH.items():
            choice = merged.get(chooser, cls.model_fields[chooser].default)
            if name not in settings and choice not in choices:
                merged.pop(name, None)
        return merged

    @field_validator("tsallis_gamma")
    @classmethod
    def _distinct_from_shannon(cls, gamma: float) -> float:
        if abs(gamma - 1.0) < _TSALLIS_MIN_DISTANCE:
            raise ValueError(
                f"must differ from 1 by at least {_TSALLIS_MIN_DISTANCE}, got {gamma}: "
                "the limit gamma -> 1 is entropy='shannon'"
            )
        return gamma

    @model_validator(mode="after")
    def _settings_that_go_together(self) -> ObjectiveConfig:
        if self.kl is None and self.is_softened:
            raise ValueError(
                f"temperature and temperature_end belong to soft=forward_kl and reverse_kl, got "
                f"soft={self.soft}: set temperature to 1 and leave temperature_end out"
            )
        for name, (chooser, choices) in _READ_WITH.items():
            value, choice = getattr(self, name), getattr(self, chooser)
            if choice not in choices and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} belongs to {chooser}={' or '.join(choices)}, got {name}={value} with "
                    f"{chooser}={choice}: leave {name} out, or choose another {chooser}"
                )
        if self.soft_weight > 1.0 and self.hard_weight is None and self.weighting != "wsl":
            raise ValueError(
                f"soft_weight must be at most 1, got {self.soft_weight}: the hard term has the "
                "rest. For independent weights give hard_weight, too"
            )
        if self.reversed and self.weighting == "static":
            raise ValueError("a static weighting has no reverse: change soft_weight instead")
        _ = self.fdivergence  # refuses its numbers
        return self

    def __str__(self) -> str:
        """The settings that are not the defaults."""
        fields = type(self).model_fields
        chosen = {name: getattr(self, name) for name in fields}
        return " ".join(
            f"{name}={value}" for name, value in chosen.items() if value != fields[name].default
        )

    @property
    def kl(self) -> str | None:
        """forward_kl or reverse_kl where the soft term is one, under whatever name."""
        if self.soft == "alpha_beta":
            return {(1.0, 0.0): "forward_kl", (0.0, 1.0): "reverse_kl"}.get((self.alpha, self.beta))
        return self.soft if self.soft in _KLS else None

    @property
    def fdivergence(self) -> FDivergence | None:
        """The soft term, if it needs a second sweep over the logits."""
        if self.soft == "total_variation":
            return FDivergence(FKind.TOTAL_VARIATION)
        if self.soft == "alpha_beta" and self.kl is None:
            return FDivergence(FKind.ALPHA_BETA, alpha=self.alpha, beta=self.beta)
        if self.soft in _MIXTURES:
            kind, default = _MIXTURES[self.soft]
            return FDivergence(kind, default if self.mixture is None else self.mixture)
        return None

    def temperature_at(self, progress: float) -> float:
        """T at this part of the run, in [0, 1]."""
        if self.temperature_end is None:
            return self.temperature
        return self.temperature + (self.temperature_end - self.temperature) * progress

    @property
    def is_softened(self) -> bool:
        """Whether the soft term needs the softened statistics: at any time."""
        return self.temperature != 1.0 or self.temperature_end is not None

    @property
    def has_soft_term(self) -> bool:
        """False when w_s is 0 for every token of the run."""
        never = self.weighting in ("static", "curriculum", "wsl") and not self.reversed
        return not never or self.soft_weight > 0.0

    @property
    def needs_teacher(self) -> bool:
        """False for a hard-only objective that needs no teacher's label: no teacher logits are
        read."""
        return self.has_soft_term or self.hard_label in ("teacher_argmax", "teacher_sample")

    @property
    def draws_labels(self) -> bool:
        """Whether the hard label is drawn anew in each step, which takes a seed."""
        return self.hard_label in ("teacher_sample", "random")

    @property
    def couples_positions(self) -> bool:
        """Whether the loss of a token depends on its neighbours, which takes a SequenceLayout."""
        return self.hard == "risk_guided"
