"""The operator's manners: memory, determinism, older processors, torch.library, torch.compile."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_checks import COLUMNS, SHARD, VOCAB, arguments
from torch import Tensor
from vocab_inputs import ALL_FEATURES, computed, contract, make_labels, make_logits, upstream

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

pytestmark = pytest.mark.usefixtures("device")


def stats_and_gradient(z: Tensor, **changes: Any) -> tuple[VocabStats, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    stats = vocab_stats(**arguments(student_logits=leaf * 1.0, **changes))
    (gradient,) = torch.autograd.grad(contract(stats, upstream(stats, seed=3)), leaf)
    return stats, gradient


# ---- memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inplace_backward_overwrites_the_logits(dtype: torch.dtype) -> None:
    """The gradient that leaves the operator lies in the logits' memory, with the same bits."""
    z, t = (make_logits(6, COLUMNS, seed, dtype) for seed in (0, 1))
    z[:, VOCAB:] = math.nan
    gradients: dict[bool, Tensor] = {}
    for inplace in (False, True):
        leaf = z.clone().requires_grad_()
        logits = leaf * 1.0
        before = logits.detach().clone()
        arrived: list[Tensor] = []
        logits.register_hook(arrived.append)
        stats = vocab_stats(
            **arguments(student_logits=logits, teacher_logits=t, inplace_backward=inplace)
        )
        (gradients[inplace],) = torch.autograd.grad(contract(stats, upstream(stats, seed=3)), leaf)
        assert (arrived[0].data_ptr() == logits.data_ptr()) == inplace
        unchanged = logits.detach().nan_to_num(7.0).equal(before.nan_to_num(7.0))
        assert unchanged != inplace
    assert gradients[True].equal(gradients[False])


def test_inplace_backward_is_noticed_by_others_who_saved_the_logits() -> None:
    """They get PyTorch's error, not gradients in place of logits."""
    leaf = make_logits(6, COLUMNS, seed=0).requires_grad_()
    logits = leaf * 1.0
    other = (logits**2).sum()
    stats = vocab_stats(**arguments(student_logits=logits, inplace_backward=True))
    (gradient,) = torch.autograd.grad(stats.student_lse.sum(), logits, retain_graph=True)
    assert gradient.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stats.student_lse.sum().backward()


LEFT, RIGHT = slice(0, COLUMNS), slice(COLUMNS, 2 * COLUMNS)


@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [
        pytest.param((slice(0, 6), LEFT), (slice(6, 12), LEFT), id="below"),
        pytest.param((slice(0, 12, 2), LEFT), (slice(1, 12, 2), LEFT), id="interleaved"),
        pytest.param((slice(0, 6), LEFT), (slice(0, 6), RIGHT), id="left half"),
        pytest.param((slice(0, 6), RIGHT), (slice(0, 6), LEFT), id="right half"),
        pytest.param((slice(0, 6), LEFT), (slice(0, 12, 2), RIGHT), id="every second row"),
    ],
)
def test_inplace_takes_a_teacher_beside_the_student(
    of_student: tuple[slice, slice], of_teacher: tuple[slice, slice]
) -> None:
    """Any row stride, also in one buffer: the gradient's bits, and the teacher as it was."""
    gradients: dict[bool, Tensor] = {}
    for inplace in (False, True):
        leaf = make_logits(12, 2 * COLUMNS, seed=0).requires_grad_()
        memory = leaf * 1.0
        teacher = memory.detach()[of_teacher]
        logits = {"student_logits": memory[of_student], "teacher_logits": teacher}
        stats = vocab_stats(**arguments(**logits, inplace_backward=inplace))
        (gradients[inplace],) = torch.autograd.grad(contract(stats, upstream(stats, seed=3)), leaf)
        assert teacher.equal(leaf.detach()[of_teacher])
        assert logits["student_logits"].equal(leaf[of_student]) != inplace
    assert gradients[True].equal(gradients[False])


def test_no_graph_for_a_student_without_gradient() -> None:
    stats = vocab_stats(**arguments())
    assert not any(value.requires_grad for value in computed(stats).values())
    z = make_logits(6, COLUMNS, seed=0).requires_grad_()
    with torch.no_grad():
        stats = vocab_stats(**arguments(student_logits=z, inplace_backward=False))
    assert not any(value.requires_grad for value in computed(stats).values())


def test_only_student_statistics_carry_a_gradient() -> None:
    stats = vocab_stats(**arguments(student_logits=make_logits(6, COLUMNS, 0).requires_grad_()))
    for name, value in computed(stats).items():
        constant = name in ("valid", "student_argmax") or name.startswith("teacher_")
        assert value.requires_grad != constant, name


def test_a_second_derivative_is_refused() -> None:
    z = make_logits(2, COLUMNS, seed=0).requires_grad_()
    labels = torch.tensor([1, 2])
    stats = vocab_stats(z, None, labels, shard=SHARD, features=Feature.LABEL)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(stats.student_lse.sum(), z, create_graph=True)


# ---- determinism


def test_same_bits_for_any_number_of_threads_and_on_repetition() -> None:
    z, t = make_logits(64, 4099, seed=0), make_logits(64, 4099, seed=1)
    changes = {
        "teacher_logits": t,
        "labels": make_labels(64, 4099, seed=2),
        "shard": VocabShard.even(4099, 4099),
        "temperature": 2.0,
    }
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            results.append(stats_and_gradient(z, **changes))
    finally:
        torch.set_num_threads(threads)
    for stats, gradient in results[1:]:
        assert gradient.equal(results[0][1])
        for name, value in computed(stats).items():
            assert value.equal(results[0][0].require(name)), name


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_processors(capability: str, device: str) -> None:
    """One build holds the kernels of several instruction sets; PyTorch's switch picks another."""
    if device != "cpu":
        pytest.skip("of the CPU's kernels")
    script = "from bgkd_megatron import ops; print(ops.build_info()['cpu_kernels'])"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    name = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    if name != capability.upper():
        pytest.skip(f"ATEN_CPU_CAPABILITY={capability} gives the {name} kernels on this machine")
    tests = [
        str(Path(__file__).with_name(name))
        for name in ("test_vocab_stats.py", "test_vocab_stats_extremes.py", "test_vocab_fdiv.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(
        [*command, "-k", "not 50257"], env=environment, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


# ---- torch.library and torch.compile


def operator_arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    z, t = (make_logits(6, COLUMNS, seed, dtype) for seed in (0, 1))
    labels = make_labels(6, VOCAB, seed=2)
    features = int(ALL_FEATURES)
    scalars = (features, 2.0, 0.5, -100)
    partial = ops.vocab_stats(z, t, labels, VOCAB, 0, *scalars)[None]
    stats = ops.merge_stats(partial, labels, *scalars)
    backward = (t, labels, VOCAB, 0, features, 2.0, -100)
    return {
        "vocab_stats": (z, t, labels, VOCAB, 0, *scalars),
        "merge_stats": (partial, labels, *scalars),
        "vocab_stats_backward": (stats, torch.ones_like(stats), z, *backward),
        "vocab_stats_backward_": (z, stats, torch.ones_like(stats), *backward),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", operator_arguments(torch.float32))
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(ops, name), operator_arguments(dtype)[name])


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_compiles_whole(inplace_backward: bool) -> None:
    objective = HybridObjective(ObjectiveConfig(entropy="tsallis", temperature=2.0), VOCAB)
    t, labels = make_logits(6, COLUMNS, seed=1), make_labels(6, VOCAB, seed=2)

    def step(leaf: Tensor) -> Tensor:
        logits = leaf * 1.0
        losses, _ = hybrid_loss(
            logits, t, labels, objective, shard=SHARD, inplace_backward=inplace_backward
        )
        return losses.loss.sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = make_logits(6, COLUMNS, seed=0).requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
