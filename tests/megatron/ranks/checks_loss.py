"""The loss hook: equal to Megatron's own cross-entropy, and to dense formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checks_model import batch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor
from world import VOCAB_EVEN, VOCAB_PADDED, layout, load

from bgkd_megatron import reference
from bgkd_megatron.megatron.loss import IGNORE_INDEX, DistillationLoss, mean_metrics
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.schedule import Microbatch
from bgkd_megatron.teacher.frozen import FrozenTeacher

Check = Callable[[Path], None]
HARD_ONLY = ObjectiveConfig(weighting="static", soft_weight=0.0)
OBJECTIVES = {
    "hard_only": HARD_ONLY,
    "entropy": ObjectiveConfig(),
    "confidence_reverse_kl": ObjectiveConfig(weighting="confidence", soft="reverse_kl"),
    "tsallis_at_temperature_2": ObjectiveConfig(entropy="tsallis", temperature=2.0),
    "curriculum_on_teacher_argmax": ObjectiveConfig(
        weighting="curriculum", hard_label="teacher_argmax"
    ),
    "jensen_shannon_weighted_by_the_label": ObjectiveConfig(soft="jensen_shannon", weighting="wsl"),
    "alpha_beta": ObjectiveConfig(soft="alpha_beta", alpha=0.4, beta=0.3, weighting="static"),
    "risk_guided": ObjectiveConfig(preset="risk_guided", risk_gamma=0.9, soft="adaptive_kl"),
}
PROGRESS = 0.1  # halfway up the curriculum
END = int(batch(VOCAB_PADDED)[0][1, 4])  # a token of the batch


def checks(world_size: int) -> dict[str, Check]:
    found: dict[str, Check] = {
        "hard_loss_is_megatrons_cross_entropy": hard_loss_is_megatrons_cross_entropy,
        "nothing_to_learn_gives_zero": nothing_to_learn_gives_zero,
        "labels_are_drawn_anew_for_each_microbatch": labels_are_drawn_anew,
    }
    for name, objective in OBJECTIVES.items():
        found[f"dense_formula_{name}"] = partial(dense_formula, objective=objective)
    return found


def microbatch(vocab_size: int) -> Microbatch:
    tokens, positions = batch(vocab_size)
    labels = (tokens * 3 + 1) % vocab_size
    labels[0, 3:9] = IGNORE_INDEX
    labels[1, -1] = IGNORE_INDEX
    ends = torch.ones_like(tokens, dtype=torch.bool)
    ends[:, :-1] = tokens[:, 1:] == END
    return Microbatch(tokens, labels, positions, ends)


def documents(tokens: Tensor) -> Tensor:
    """[b s]: END begins another document, and so does every sequence."""
    starts = tokens == END
    starts[:, 0] = True
    return starts.flatten().cumsum(0)


def run_hook(model: Any, loss: DistillationLoss, inputs: Microbatch) -> tuple[Tensor, Tensor, dict]:
    """Per-token losses [b, s], number of tokens, report; gradients are in the parameters."""
    model.zero_grad()
    token_loss, reduce = loss.forward_step([inputs], PROGRESS)(iter([inputs]), model)
    loss_sum, num_tokens, report = reduce(token_loss)
    loss_sum.backward()
    torch.testing.assert_close(loss_sum, token_loss.sum())
    return token_loss.detach(), num_tokens, report


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        # Relative to the largest entry: small ones are differences of large terms.
        scale = gradient.abs().max().item()
        assert scale > 0.0, f"{name} has no gradient, so nothing is compared"
        torch.testing.assert_close(
            actual[name], gradient, rtol=0.0, atol=2e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def hard_loss_is_megatrons_cross_entropy(workspace: Path) -> None:
    """Soft weight 0, no padding: GPTModel(labels=...) with vocab_parallel_cross_entropy."""
    with layout(dist.get_world_size()):
        model = load(workspace, "student", VOCAB_EVEN)
        inputs = microbatch(VOCAB_EVEN)
        keep = inputs.labels != IGNORE_INDEX
        objective = HybridObjective(HARD_ONLY, VOCAB_EVEN)
        ours, num_tokens, _ = run_hook(model, DistillationLoss(objective), inputs)
        our_gradients = gradients(model)
        model.zero_grad()
        labels = inputs.labels.clamp(min=0)
        theirs = model(inputs.tokens, inputs.position_ids, None, labels=labels) * keep
        theirs.sum().backward()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
        assert_same_gradients(our_gradients, gradients(model))
        # Megatron adds the tokens of a step up into an int32.
        assert num_tokens.dtype == torch.int
        assert num_tokens == keep.sum()


def dense_formula(workspace: Path, objective: ObjectiveConfig) -> None:
    """Padded vocabulary: the dense loss on the gathered, unpadded logits."""
    with layout(dist.get_world_size()):
        vocab_size = VOCAB_PADDED
        model = load(workspace, "student", vocab_size)
        teacher = load(workspace, "teacher", vocab_size)
        inputs = microbatch(vocab_size)
        loss = DistillationLoss(
            HybridObjective(objective, vocab_size),
            FrozenTeacher([teacher]) if objective.needs_teacher else None,
        )
        ours, _, report = run_hook(model, loss, inputs)
        our_gradients = gradients(model)
        loss.gradient_in_forward = True
        in_forward, _, report_in_forward = run_hook(model, loss, inputs)
        torch.testing.assert_close(in_forward, ours, rtol=1e-5, atol=1e-6)
        assert_same_gradients(gradients(model), our_gradients)
        torch.testing.assert_close(report_in_forward, report, rtol=1e-5, atol=1e-5)
        model.zero_grad()
        z, t = (
            gather_from_tensor_model_parallel_region(
                m(inputs.tokens, inputs.position_ids, None)
            ).flatten(0, 1)
            for m in (model, teacher)
        )
        labels = inputs.labels.flatten()
        dense = reference.hybrid_loss(
            z,
            t.detach(),
            labels,
            objective,
            vocab_size=vocab_size,
            progress=PROGRESS,
            documents=documents(inputs.tokens),
        )
        dense.loss.sum().backward()
        torch.testing.assert_close(ours.flatten(), dense.loss.detach(), rtol=1e-4, atol=1e-5)
        assert_same_gradients(our_gradients, gradients(model))
        means = mean_metrics([report, report])
        num_tokens = (labels != IGNORE_INDEX).sum().item()
        assert means["tokens"] == 2 * num_tokens
        for name, values in (("loss", dense.loss), ("soft_weight", dense.soft_weight)):
            expected = values.sum().item() / num_tokens
            assert abs(means[name] - expected) < 1e-4, (name, means[name], expected)


def labels_are_drawn_anew(workspace: Path) -> None:
    """The same for the same iteration and place in it, on all ranks; others otherwise."""
    with layout(dist.get_world_size()):
        model = load(workspace, "student", VOCAB_PADDED)
        teacher = FrozenTeacher([load(workspace, "teacher", VOCAB_PADDED)])
        inputs = microbatch(VOCAB_PADDED)
        for hard_label in ("teacher_sample", "random"):
            settings = ObjectiveConfig(hard_label=hard_label)
            loss = DistillationLoss(HybridObjective(settings, VOCAB_PADDED), teacher, seed=7)

            def losses(iteration: int, batches: int, loss: DistillationLoss = loss) -> list[Tensor]:
                both = [inputs] * batches
                step, iterator = loss.forward_step(both, PROGRESS, iteration), iter(both)
                with torch.no_grad():
                    return [step(iterator, model)[0] for _ in both]

            first, second = losses(3, 2)
            assert losses(3, 1)[0].equal(first)
            assert not second.equal(first)
            assert not losses(4, 1)[0].equal(first)
            everyone = [torch.empty_like(first) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, first)
            assert all(other.equal(first) for other in everyone)


def nothing_to_learn_gives_zero(workspace: Path) -> None:
    with layout(dist.get_world_size()):
        model = load(workspace, "student", VOCAB_PADDED)
        teacher = FrozenTeacher([load(workspace, "teacher", VOCAB_PADDED)])
        loss = DistillationLoss(HybridObjective(ObjectiveConfig(), VOCAB_PADDED), teacher)
        inputs = microbatch(VOCAB_PADDED)
        inputs.labels.fill_(IGNORE_INDEX)
        token_loss, num_tokens, report = run_hook(model, loss, inputs)
        assert num_tokens == 0
        assert (token_loss == 0).all()
        assert all((g == 0).all() for g in gradients(model).values())
        assert mean_metrics([report]) == {"tokens": 0.0}
