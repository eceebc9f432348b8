"""The reference release's loss of a micro-batch, written from its definition, == its preset.

Float64, dense, in formulas of this file's own.  The release divides the hard term by the tokens of
the whole step and the soft term by those of the micro-batch: `soft_scale` is the ratio.  Its
risk-guided loss divides its last terms by the sequences: `risk_terminal` is tokens per sequence.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from statistics_route import by_statistics
from torch import Tensor
from torch.nn import functional
from vocab_inputs import make_labels, make_logits

from bgkd_megatron.drawn_labels import drawn_labels
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.objectives.presets import PRESETS, release
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.vocab_shard import VocabShard

VOCAB, BATCH, LENGTH = 41, 3, 7
WEIGHT, RATIO, STEPS = 0.2, 0.2, 54  # --distill_weight, --curriculum_warmup_ratio
ETA, ALPHA, GAMMA, TSALLIS = 0.1, 0.05, 0.9999, 0.1
STEPS_OF_RELEASE = 8.0  # micro-batches and ranks whose tokens divide the hard term
SHARD = VocabShard.even(VOCAB, VOCAB)

PHI_TYPES = [name.removeprefix("release_") for name in PRESETS if name.startswith("release_")]
DIVS = [name.removeprefix("div_") for name in PHI_TYPES if name.startswith("div_")]
PHI_TYPES = [name for name in PHI_TYPES if not name.startswith("div_")]


# ---- the release


def entropy(x: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=x).entropy()


def kl(x: Tensor, log_y: Tensor) -> Tensor:
    """[N] from probabilities and logarithms of them."""
    return functional.kl_div(log_y, x, reduction="none").sum(-1)


def divergence(z: Tensor, t: Tensor, div: str) -> Tensor:
    q, p, lam = z.softmax(-1), t.softmax(-1), 0.1
    match div:
        case "ab":
            return kl(p, q.log())
        case "sfkl":
            return -(p * (lam * p + (1 - lam) * q).log()).sum(-1)
        case "srkl":
            return kl(q, ((1 - lam) * p + lam * q).log())
        case "jsd":
            m = (1 - lam) * p + lam * q
            return lam * kl(q, m.log()) + (1 - lam) * kl(p, m.log())
        case "tv":
            return functional.l1_loss(p, q, reduction="none").sum(-1) / 2
        case "akl":
            mu = 0.5
            of_p, of_q = (-mu * entropy(t)).exp(), (-mu * entropy(z)).exp()
            forward = of_p / (of_p + of_q)
            return forward * kl(p, q.log()) + (1 - forward) * kl(q, p.log())
    raise AssertionError(div)


def weights(z: Tensor, t: Tensor, labels: Tensor, phi_type: str, step: int) -> tuple[Any, Any]:
    """Of the hard term and of the soft one."""
    p_y, q_y = (x.softmax(-1).gather(1, labels[:, None]).squeeze(1).detach() for x in (t, z))
    smooth = (t.softmax(-1).pow(TSALLIS).sum(-1) - 1) / (VOCAB ** (1 - TSALLIS) - 1)
    warm = int(STEPS * RATIO)
    rising = WEIGHT * step / warm if step < warm else WEIGHT
    falling = 1 - step / warm * (1 - WEIGHT) if step < warm else WEIGHT
    log_p = p_y.clamp(min=1e-8).log()
    log_p = torch.where(log_p.abs() < 1e-8, -1e-8, log_p)
    ratio = (q_y.clamp(min=1e-8).log() / log_p).clamp(-10, 10)
    match phi_type:
        case "adap_sft":
            return p_y, 1 - p_y
        case "reverse_adap_sft":
            return 1 - p_y, p_y
        case "entropy_sft_distill":
            return 1 - smooth, smooth
        case "entropy_sft_sft":
            return smooth, 1 - smooth
        case "curriculum_weight" | "chi2_curriculum":
            return 1 - rising, rising
        case "reverse_curriculum_weight":
            return 1 - falling, falling
        case "wsl":
            return 1.0, WEIGHT * (1 - (-ratio).exp()).clamp(0, 1)
        case "reverse_wsl":
            return 1.0, WEIGHT * (-ratio).exp()
    return 1 - WEIGHT, WEIGHT


def chi_square(z: Tensor, labels: Tensor) -> Tensor:
    """J of z [b, s, V]."""
    tokens, ends = z.new_zeros(()), []
    for logits, own in zip(z, labels, strict=True):
        valid = (own != -100).tolist()
        value = [
            x.logsumexp(-1) if v else z.new_zeros(()) for x, v in zip(logits, valid, strict=True)
        ]
        value.append(z.new_zeros(()))
        discount = 1.0
        for i in (i for i, counts in enumerate(valid) if counts):
            r = logits[i, own[i]] - GAMMA * value[i + 1]
            phi = ALPHA * r - (ALPHA * r) ** 2 / 4
            tokens = tokens + discount * (phi / ALPHA - (value[i] - GAMMA * value[i + 1]))
            x = ALPHA * (1 - GAMMA) * value[i]
            last = discount * ((x - x**2 / 4) / (ALPHA * (1 - GAMMA)) - value[i])
            discount *= GAMMA
        ends += [last] if any(valid) else []
    return -(tokens / (labels != -100).sum() + torch.stack(ends).mean())


def release_loss(
    z: Tensor, t: Tensor, labels: Tensor, phi_type: str, div: str, step: int, scale: float
) -> Tensor:
    """Of z, t [b, s, V] and labels [b, s]; the step has `scale` times the tokens."""
    valid = labels != -100
    student, teacher, tokens = z[valid], t[valid], labels[valid]
    count = len(tokens)
    hard_weight, soft_weight = weights(student, teacher, tokens, phi_type, step)
    # What is weighted by the token is alpha-beta there; --div is only logged.
    by_token = ("adap", "reverse_adap", "entropy", "wsl", "reverse_wsl")
    soft = divergence(student, teacher, "ab" if phi_type.startswith(by_token) else div)
    if phi_type.startswith("temperature_schedule"):
        part = step / (STEPS - 1)
        low_first = phi_type.endswith("low_to_high")
        tau = 1 + 3 * part if low_first else 4 - 3 * part
        soft = tau**2 * kl((teacher / tau).softmax(-1), (student / tau).log_softmax(-1))
    soft = (soft_weight * soft).sum() / count
    if phi_type.startswith("chi2"):
        return hard_weight * chi_square(z, labels) + soft
    hard = functional.cross_entropy(student, tokens, reduction="none")
    loss = (hard_weight * hard).sum() / (scale * count) + soft
    if phi_type == "soft_kd_entropy_reg":
        loss = loss - ETA * entropy(student).mean()
    return loss


# ---- and its presets


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """z, t [b, s, V] float64, labels [b, s]; the last sequence has none, the first one a gap."""
    z, t = (make_logits(BATCH * LENGTH, VOCAB, seed, torch.float64) for seed in (0, 1))
    labels = make_labels(BATCH * LENGTH, VOCAB, seed=2).view(BATCH, LENGTH)
    labels[-1] = -100
    shape = BATCH, LENGTH, VOCAB
    return z.view(shape).requires_grad_(), t.view(shape), labels


def config_of(phi_type: str, div: str, labels: Tensor) -> tuple[ObjectiveConfig, float]:
    """With the switches for the release's denominators; how many tokens the step has for each."""
    scale = 1.0 if phi_type.startswith("chi2") else STEPS_OF_RELEASE
    settings = release(phi_type, div)
    switches: dict[str, Any] = {"soft_scale": scale}
    if settings["weighting"] not in ("confidence", "entropy"):
        switches["soft_weight"] = WEIGHT
    if phi_type.startswith("chi2"):
        valid = labels != -100
        switches["risk_terminal"] = valid.sum().item() / valid.any(dim=1).sum().item()
    if "curriculum" in phi_type:
        switches["curriculum_fraction"] = int(STEPS * RATIO) / (STEPS - 1)  # in terms of progress
    if phi_type == "soft_kd_entropy_reg":
        switches["entropy_regularizer"] = scale * ETA
    return ObjectiveConfig(**(settings | switches)), scale


def assert_equal(ours: Tensor, expected: Tensor, z: Tensor, rtol: float) -> None:
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=rtol)
    (gradient,), (exact,) = (torch.autograd.grad(x, z) for x in (ours, expected))
    assert exact.any()
    torch.testing.assert_close(gradient, exact, rtol=10 * rtol, atol=rtol)


@pytest.mark.parametrize("div", DIVS)
@pytest.mark.parametrize("phi_type", PHI_TYPES)
def test_equals_the_release(phi_type: str, div: str) -> None:
    z, t, labels = problem()
    config, scale = config_of(phi_type, div, labels)
    for step in (4, 30) if div == "ab" else (4,):
        losses = by_statistics(
            z.flatten(0, 1),
            t.flatten(0, 1),
            labels.flatten(),
            config,
            vocab_size=VOCAB,
            progress=step / (STEPS - 1),
            sequences=SequenceLayout(LENGTH, BATCH, batch_first=True),
        )
        ours = losses.loss.sum() / (scale * (labels != -100).sum())
        expected = release_loss(z, t, labels, phi_type, div, step, scale)
        assert_equal(ours, expected, z, rtol=1e-10)


@pytest.mark.parametrize(
    ("phi_type", "div"),
    [
        ("sft", "ab"),
        ("chi2", "tv"),
        ("chi2_curriculum", "srkl"),
        ("entropy_sft_distill", "sfkl"),
        ("wsl", "jsd"),
        ("curriculum_weight", "jsd"),
        ("soft_kd_entropy_reg", "akl"),
        ("temperature_schedule_high_to_low", "ab"),
        ("random_label", "ab"),
    ],
)
def test_kernels_equal_the_release(phi_type: str, div: str) -> None:
    z, t, labels = problem()
    config, scale = config_of(phi_type, div, labels)
    losses, _ = hybrid_loss(
        z.flatten(0, 1).float(),
        t.flatten(0, 1).float(),
        labels.flatten(),
        HybridObjective(config, VOCAB),
        shard=SHARD,
        progress=30 / (STEPS - 1),
        seed=3,
        sequences=SequenceLayout(LENGTH, BATCH, batch_first=True),
    )
    if config.draws_labels:
        drawn = drawn_labels(
            None, labels.flatten(), num_tokens=labels.numel(), shard=SHARD, seed=3, device=z.device
        )
        assert not drawn.equal(labels.flatten())
        labels = drawn.view_as(labels)
    ours = losses.loss.sum() / (scale * (labels != -100).sum())
    expected = release_loss(z, t, labels, phi_type, div, 30, scale)
    assert_equal(ours, expected, z, rtol=1e-5)


def test_release_names() -> None:
    for arguments, wrong in ((("dpo", "ab"), "dpo"), (("sft", "js"), "js")):
        with pytest.raises(ValueError, match=f"'{wrong}' is none of sft, .*|ab, "):
            release(*arguments)
    assert release("sft")["soft"] == "alpha_beta"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_configuration(name: str) -> None:
    config = ObjectiveConfig(preset=name)
    assert {key: getattr(config, key) for key in PRESETS[name]} == PRESETS[name]
    assert ObjectiveConfig(**config.model_dump()) == config


def test_presets_merge_and_give_way_to_settings() -> None:
    config = ObjectiveConfig(preset=["release_chi2", "release_div_jsd"], mixture=0.3)
    assert config == ObjectiveConfig(**(release("chi2", "jsd") | {"mixture": 0.3}))
    # The later one of two.
    assert ObjectiveConfig(preset=["confidence", "entropy"]).weighting == "entropy"
    assert ObjectiveConfig(preset=["confidence", "entropy"], weighting="wsl").weighting == "wsl"
    assert math.isclose(ObjectiveConfig(preset="release_chi2").risk_gamma, GAMMA)
    with pytest.raises(ValueError, match="got 'dpo'"):
        ObjectiveConfig(preset=["static", "dpo"])
