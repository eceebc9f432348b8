"""Gradients with respect to the student's logits in float64 (csrc/core/gradient.h, fdiv.h), with
bounds that leave out the last rounding to the logits' type."""

from __future__ import annotations

import numpy as np

from .bounded import EPSILON, LN2, Bounded, finite, masked, weighted
from .contract import EXPONENTS, Divergence
from .formulas import Model

# Statistics through which a gradient flows to the student.
DIFFERENTIABLE = ("student_sum", "student_entropy", "student_at_label", "student_at_teacher_argmax",
                  "forward_kl", "reverse_kl", "soft_forward_kl", "soft_reverse_kl")  # fmt: skip
# ... of these it is a multiple of q, but at one column
MULTIPLES_OF_Q = ("student_sum", "student_at_label", "student_at_teacher_argmax")

Array = np.ndarray
Term = tuple[Array, Array]  # values and their errors
FLUSHED = 2.0**-126  # a smaller probability may be lost, and with it what it is multiplied by


class Distribution:
    """softmax of logits at a temperature, with what float32 makes of its exponents."""

    def __init__(self, logits: np.ndarray, scale: float = 1.0) -> None:
        with np.errstate(all="ignore"):
            gap = (logits - logits.max(1, keepdims=True)) * scale
            log_sum = np.log(np.exp(gap).sum(1, keepdims=True))
            self.log = gap - log_sum
        self.probability = np.exp(self.log)
        # of the exponent, in nats: rounded twice, as is the sum's logarithm
        self.log_error = EPSILON * 2 * (np.abs(finite(self.log)) + 2 * np.abs(finite(log_sum)))
        self.error = self.probability * (4 * EPSILON + self.log_error) + FLUSHED

    def mean(self, x: np.ndarray) -> np.ndarray:
        return weighted(self.probability, x).sum(1, keepdims=True)


def one_hot(shape: tuple[int, int], columns: np.ndarray) -> np.ndarray:
    """Ones at these columns; a column that is not in the shape has none."""
    return (np.arange(shape[1]) == columns[:, None]).astype(np.float64)


def stats_gradient(model: Model, upstream: dict[str, np.ndarray]) -> Bounded:
    """[N, V]; model: of the whole vocabulary. upstream: d loss / d statistic, [N] each."""
    up = {name: upstream.get(name, np.zeros(len(model.z)))[:, None] for name in DIFFERENTIABLE}
    scale = model.inv_temperature
    q, p = Distribution(model.z), Distribution(model.t)
    at_label, at_argmax = up["student_at_label"], up["student_at_teacher_argmax"]
    value, error = _pair(q, p, up["forward_kl"], up["reverse_kl"])
    for distribution, coefficient in ((q, up["student_sum"] - at_label - at_argmax),):
        value = value + coefficient * distribution.probability
        size = np.abs(up["student_sum"]) + np.abs(at_label) + np.abs(at_argmax)
        error = error + size * (distribution.error + 3 * EPSILON * distribution.probability)
    entropy = -q.mean(q.log)
    value = value - up["student_entropy"] * weighted(q.probability, q.log + entropy)
    size = np.abs(finite(q.log)) + entropy
    error = error + np.abs(up["student_entropy"]) * size * (q.error + 6 * EPSILON * q.probability)
    soft_value, soft_error = _pair(
        Distribution(model.z, scale), Distribution(model.t, scale),
        scale * up["soft_forward_kl"], scale * up["soft_reverse_kl"],
    )  # fmt: skip
    value, error = value + soft_value, error + soft_error
    for columns, extra in (
        (model.labels - model.vocab_start, at_label),
        (model.argmax(model.t), at_argmax),
    ):
        place = one_hot(value.shape, columns)
        value = value + place * extra
        error = error + place * np.abs(extra) * 2 * EPSILON
    error = error + EPSILON * np.abs(finite(value))
    return masked(Bounded(value, error), model.skipped[:, None])


def _pair(
    q: Distribution, p: Distribution, forward: np.ndarray, reverse: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value and error of the two divergences' terms."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(reverse == 0, 0.0, q.log - p.log)
        mean = q.mean(ratio)
        value = forward * (q.probability - p.probability) + reverse * weighted(
            q.probability, ratio - mean
        )
    size = np.abs(finite(q.log)) + np.abs(finite(p.log)) + np.abs(finite(mean))
    error = np.abs(forward) * (q.error + p.error + 3 * EPSILON * (q.probability + p.probability))
    error = error + np.abs(reverse) * (
        size * (q.error + 6 * EPSILON * q.probability)
        + 2 * q.probability * (q.log_error + p.log_error)
    )
    return value, error


class FDivergence:
    """One divergence of q = softmax(z) and p = softmax(t): D = S d, slope = S q g, and d D / d z.

    All values of mixtures pass through numbers times 2^60, so that exponents are
    rounded as numbers of that size are.
    """

    def __init__(
        self, model: Model, kind: Divergence, skew: float,
        exponents: tuple[float, float] = EXPONENTS,
    ) -> None:  # fmt: skip
        self.q, self.p = Distribution(model.z), Distribution(model.t)
        self.model, self.skipped = model, model.skipped
        self.ascent: Array | None = None
        q, p = self.q.probability, self.p.probability
        with np.errstate(all="ignore"):
            if kind == Divergence.TOTAL_VARIATION:
                self._total_variation(q, p)
            elif kind == Divergence.ALPHA_BETA:
                self._alpha_beta(*(float(np.float32(c)) for c in exponents))
            else:
                of_teacher = skew if kind == Divergence.SKEW_FORWARD else 1 - skew
                p_log, q_log = np.log(of_teacher) + self.p.log, np.log1p(-of_teacher) + self.q.log
                self._logarithmic(kind, skew, np.logaddexp(p_log, q_log))
        self.divergence = masked(self.divergence, self.skipped)
        self.slope = masked(self.slope, self.skipped)

    def _total_variation(self, q: np.ndarray, p: np.ndarray) -> None:
        self.g = np.sign(q - p) / 2
        # the sign of a difference that is smaller than its error may be any
        unsure = np.abs(q - p) <= self.q.error + self.p.error
        self.g_error = unsure.astype(np.float64)
        d = np.abs(q - p) / 2
        size = self.q.error + self.p.error + 8 * EPSILON * d
        self.divergence = Bounded(d.sum(1), size.sum(1))
        self.slope = self._slope()

    def _alpha_beta(self, alpha: float, beta: float) -> None:
        """Here q g is what is known, `ascent`; g itself has no bound."""
        q_log, p_log = (np.maximum(x.log, -1e30 * LN2) for x in (self.q, self.p))
        present = q_log + p_log > -1.5e30 * LN2
        total = 0.0 if abs(alpha + beta) < 1e-5 else alpha + beta

        def power(of_p: float, of_q: float) -> Term:
            value = np.exp(of_p * p_log + of_q * q_log)
            error = abs(of_p) * (self.p.log_error + 4 * EPSILON * np.abs(finite(self.p.log)))
            error = error + abs(of_q) * (
                self.q.log_error + 4 * EPSILON * np.abs(finite(self.q.log))
            )
            return value, value * (error + 6 * EPSILON) + FLUSHED

        def gap(c: float, x: Term, y: Term, limit: Term) -> Term:
            if c == 0:
                return limit
            error = x[1] + y[1] + 4 * EPSILON * (x[0] + y[0])
            return (x[0] - y[0]) / c, error / abs(c)

        ratio = q_log - p_log
        ratio_error = self.q.log_error + self.p.log_error + 4 * EPSILON * np.abs(ratio)
        ratio_error = ratio_error + 2 * EPSILON * (np.abs(q_log) + np.abs(p_log))
        cross, of_q, of_p = power(alpha, beta), power(0, total), power(total, 0)
        rise = gap(total, of_q, of_p, (ratio, ratio_error))

        def times_ratio(x: Term) -> Term:
            return weighted(x[0], ratio), x[1] * np.abs(ratio) + x[0] * ratio_error

        if alpha:
            self.ascent, self.ascent_error = gap(alpha, of_q, cross, rise)
            fall = gap(beta, cross, of_p, times_ratio(cross))
            d = (rise[0] - fall[0]) / alpha, (rise[1] + fall[1]) / abs(alpha)
        elif beta:
            self.ascent, self.ascent_error = times_ratio(of_q)
            d = (self.ascent - rise[0]) / beta, (self.ascent_error + rise[1]) / abs(beta)
        else:
            self.ascent, self.ascent_error = ratio, ratio_error
            d = ratio**2 / 2, np.abs(ratio) * (ratio_error + 2 * EPSILON * np.abs(ratio))
        terms, errors, self.ascent, self.ascent_error = (
            np.where(present, x, 0.0) for x in (*d, self.ascent, self.ascent_error)
        )
        self.divergence = Bounded(terms.sum(1), (errors + 20 * EPSILON * np.abs(terms)).sum(1))
        rounding = 20 * EPSILON * np.abs(self.ascent)
        self.slope = Bounded(self.ascent.sum(1), (self.ascent_error + rounding).sum(1))

    def _logarithmic(self, kind: Divergence, skew: float, m_log: np.ndarray) -> None:
        """m_log: ln of the mixture."""
        q, p, rest = self.q.probability, self.p.probability, 1 - skew
        # of logarithms, in nats: 60 bits are added to them ...
        q_error = self.q.log_error + 64 * EPSILON * LN2
        p_error = self.p.log_error + 64 * EPSILON * LN2
        mixed_error = np.maximum(q_error, p_error) + 4 * EPSILON
        # ... and taken away from lg2, which may be off by 2^-22 of what it returns
        bits = np.maximum(np.abs(finite(m_log) / LN2 + 60), 1)
        m_error = mixed_error + EPSILON * LN2 * (64 + 4 * bits)

        def terms(weight: Array, ratio: Array, error: Array) -> tuple[Array, Array]:
            size = error * (1 + np.abs(finite(ratio))) + m_error
            return weighted(weight, ratio), weighted(weight, size)

        q_ratio, p_ratio = self.q.log - m_log, self.p.log - m_log
        q_terms, p_terms = terms(q, q_ratio, q_error), terms(p, p_ratio, p_error)
        if kind == Divergence.JENSEN_SHANNON:
            self.g, self.g_error = skew * q_ratio, skew * (q_error + m_error)
            d = skew * q_terms[0] + rest * p_terms[0], skew * q_terms[1] + rest * p_terms[1]
        elif kind == Divergence.SKEW_FORWARD:
            self.g = -rest * np.exp(p_ratio)
            self.g_error = np.abs(finite(self.g)) * (p_error + mixed_error)
            d = p_terms
        else:
            q_share = np.exp(q_ratio)
            self.g = q_ratio - skew * q_share
            self.g_error = q_error + m_error + finite(q_share) * (q_error + mixed_error)
            d = q_terms
        self.q.error = self.q.error + q * 64 * EPSILON * LN2
        self.divergence = Bounded(d[0].sum(1), d[1].sum(1) + 16 * EPSILON * np.abs(d[0]).sum(1))
        self.slope = self._slope()

    def _slope(self) -> Bounded:
        q = self.q.probability
        terms = weighted(q, self.g)
        error = q * self.g_error + (self.q.error + 16 * EPSILON * q) * np.abs(finite(self.g))
        return Bounded(terms.sum(1), error.sum(1))

    def combined_gradient(
        self, upstream_stats: dict[str, np.ndarray], upstream: np.ndarray
    ) -> Bounded:
        """[N, V], of divergence and statistics; upstream_stats: as stats_gradient's."""
        own, stats = self.gradient(upstream), stats_gradient(self.model, upstream_stats)
        # a multiple of q may be one of the divergence's q, whose exponent has 60 bits added
        multiple = sum(np.abs(upstream_stats.get(name, 0.0)) for name in MULTIPLES_OF_Q)
        multiple = np.broadcast_to(multiple, upstream.shape)[:, None] * self.q.probability
        error = multiple * 64 * EPSILON * LN2
        # the sum is rounded, with what is added at a label or argmax and without
        error = error + 2 * EPSILON * (np.abs(own.value) + np.abs(finite(stats.value)))
        both = Bounded(own.value + stats.value, own.error + stats.error + error)
        return masked(both, self.skipped[:, None])

    def gradient(self, upstream: np.ndarray) -> Bounded:
        """[N, V]; upstream: d loss / d divergence, [N]."""
        q, up = self.q.probability, upstream[:, None].astype(np.float64)
        slope = self.slope.value[:, None]
        if self.ascent is not None:
            value = up * (self.ascent - q * slope)
            error = self.ascent_error + 4 * EPSILON * np.abs(self.ascent)
            error = error + q * np.asarray(self.slope.error)[:, None]
            error = np.abs(up) * (error + (self.q.error + 6 * EPSILON * q) * np.abs(slope))
            return masked(Bounded(value, error), self.skipped[:, None])
        with np.errstate(invalid="ignore"):
            value = up * weighted(q, self.g - slope)
        size = np.abs(finite(self.g)) + np.abs(slope)
        error = q * (self.g_error + np.asarray(self.slope.error)[:, None] + 6 * EPSILON * size)
        error = np.abs(up) * (error + self.q.error * size)
        return masked(Bounded(value, error), self.skipped[:, None])
