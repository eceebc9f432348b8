"""The operators in a CUDA graph: captured once, replayed on other logits, the bits of a launch.

An operator that waited for the device, or allocated outside PyTorch's caching allocator, would fail
to be captured.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from vocab_inputs import ALL_FEATURES, make_labels, make_logits

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_shard import VocabShard

pytestmark = pytest.mark.skipif(
    "cuda" not in ops.DEVICES or not torch.cuda.is_available(),
    reason="a graph is captured on a GPU, by a build with CUDA kernels",
)
FEATURES = int(ALL_FEATURES)
SCALARS = (FEATURES, 2.0, 0.3, -100)  # temperature, power exponent, ignored label

Step = Callable[[Tensor, Tensor, Tensor], object]


def _global_stats(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    partial = ops.vocab_stats(student, teacher, labels, student.shape[1], 0, *SCALARS)
    return ops.merge_stats(partial[None], labels, *SCALARS)


def statistics(student: Tensor, teacher: Tensor, labels: Tensor) -> object:
    return _global_stats(student, teacher, labels)


def gradient(student: Tensor, teacher: Tensor, labels: Tensor) -> object:
    stats = _global_stats(student, teacher, labels)
    shard = (teacher, labels, student.shape[1], 0, FEATURES, 2.0, -100)
    return ops.vocab_stats_backward(stats, torch.ones_like(stats), student, *shard)


def gradient_in_place(student: Tensor, teacher: Tensor, labels: Tensor) -> object:
    logits = student.clone()
    stats = _global_stats(logits, teacher, labels)
    shard = (teacher, labels, student.shape[1], 0, FEATURES, 2.0, -100)
    ops.vocab_stats_backward_(logits, stats, torch.ones_like(stats), *shard)
    return logits


def fused(student: Tensor, teacher: Tensor, labels: Tensor) -> object:
    logits = student.clone()
    config = ObjectiveConfig(weighting="static", temperature=2.0)
    objective = HybridObjective(config, student.shape[1]).named(progress=0.0)
    assert objective is not None
    stats = ops.fused_loss_(logits, teacher, labels, student.shape[1], *SCALARS, *objective)
    return logits, stats


def whole_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> object:
    leaf = student.detach().requires_grad_()
    vocab_size = student.shape[1]
    losses, _ = hybrid_loss(
        leaf * 1.0, teacher, labels, HybridObjective(ObjectiveConfig(), vocab_size),
        shard=VocabShard.even(vocab_size, vocab_size), inplace_backward=True,
    )  # fmt: skip
    return losses.loss, torch.autograd.grad(losses.loss.sum(), leaf)


# One row is read in parts, many are not.
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(1, 50_257), (600, 1003)])
@pytest.mark.parametrize(
    "step",
    [statistics, gradient, gradient_in_place, fused, whole_loss],
    ids=lambda step: step.__name__,
)
def test_replay_gives_the_bits_of_a_launch(step: Step, num_tokens: int, vocab_size: int) -> None:
    if step is fused and torch.cuda.get_device_capability() < (9, 0) and vocab_size > 10_000:
        pytest.skip("such a row does not fit on the chip before sm_90")

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = (make_logits(num_tokens, vocab_size, seed + k, torch.bfloat16) for k in (0, 1))
        student, teacher = (x.cuda() for x in logits)
        return student, teacher, make_labels(num_tokens, vocab_size, seed + 2).cuda()

    static = inputs(seed=0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # memory and modules are ready before the capture
        step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for seed in (10, 20):
        fresh = inputs(seed)
        expected = tree_leaves(step(*fresh))
        for place, value in zip(static, fresh, strict=True):
            place.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        for ours, launched in zip(tree_leaves(captured), expected, strict=True):
            assert ours.equal(launched)
