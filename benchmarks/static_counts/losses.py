"""The losses that are compared, each as a step that runs forward and backward on the CPU.

Modules of other packages are loaded from where they are installed; nothing of them is here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from loss_bench.problem import OBJECTIVES, Task
from torch import Tensor

from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard

NUM_TOKENS = 16
"""Few, because bytes and instructions for each logit do not depend on them; 16, because Triton
makes other code for numbers that 16 does not divide."""


@dataclass(frozen=True)
class Place:
    """num_columns: of the logits on this rank. capability: the GPU's, 90 for 9.0. group: None where
    one rank has the whole vocabulary."""

    vocab_size: int
    num_columns: int
    capability: int
    group: dist.ProcessGroup | None

    def shard(self) -> VocabShard:
        return VocabShard.even(self.vocab_size, self.num_columns, self.group)


@dataclass(frozen=True)
class Inputs:
    """bfloat16 logits [N, num_columns] and labels [N]. The student's are no leaf: a loss may
    overwrite them."""

    student: Tensor
    teacher: Tensor
    labels: Tensor

    @classmethod
    def make(cls, num_columns: int) -> Inputs:
        shape = (NUM_TOKENS, num_columns)
        random = torch.Generator().manual_seed(0)
        student, teacher = (
            torch.randn(shape, generator=random, dtype=torch.bfloat16) for _ in range(2)
        )
        labels = torch.randint(num_columns, shape[:1], generator=random)
        return cls(student.requires_grad_() * 1, teacher, labels)


Step = Callable[[Inputs], None]
LossFunction = Callable[[Inputs], Tensor]
Subject = Literal["cross-entropy", "forward KL", "Jensen-Shannon", "hybrid"]


@dataclass(frozen=True)
class Loss:
    title: str
    subject: Subject
    prepare: Callable[[Place], Step]
    """May raise whatever a missing package, or another version of it, raises."""
    tensor_parallel: bool = False


def _differentiated(make: Callable[[Place], LossFunction]) -> Callable[[Place], Step]:
    """The step of a loss of one element."""

    def prepare(place: Place) -> Step:
        loss = make(place)

        def step(inputs: Inputs) -> None:
            torch.autograd.grad(loss(inputs), inputs.student)

        return step

    return prepare


# ---- ours


def _ours(task: Task, *, in_forward: bool = False, scaled: bool = True) -> Callable[[Place], Step]:
    """scaled: the gradient of a token's loss is not 1."""

    def make(place: Place) -> LossFunction:
        config = OBJECTIVES[task]
        objective = HybridObjective(config, place.vocab_size)
        shard = place.shard()

        def loss(inputs: Inputs) -> Tensor:
            teacher = inputs.teacher if config.needs_teacher else None
            losses, _ = hybrid_loss(
                inputs.student, teacher, inputs.labels, objective, shard=shard,
                inplace_backward=True, gradient_in_forward=in_forward,
            )  # fmt: skip
            return losses.loss.mean() if scaled else losses.loss.sum()

        return loss

    return _differentiated(make)


def _our_jensen_shannon(place: Place) -> LossFunction:
    shard, divergence = place.shard(), FDivergence(FKind.JENSEN_SHANNON, 0.5)

    def loss(inputs: Inputs) -> Tensor:
        _, value = vocab_fdiv(
            inputs.student, inputs.teacher, inputs.labels, shard=shard, divergence=divergence,
            inplace_backward=True,
        )  # fmt: skip
        return value.mean()

    return loss


# ---- Liger


def _liger_cross_entropy(upstream: float) -> Callable[[Place], LossFunction]:
    def make(place: Place) -> LossFunction:
        module = importlib.import_module("liger_kernel.ops.cross_entropy")
        # It asks the GPU, and takes other launch parameters from Blackwell on.
        family = {8: "ampere_ada", 9: "hopper"}.get(place.capability // 10, "blackwell")
        module.infer_device_arch = lambda: family  # type: ignore[attr-defined]
        apply = module.LigerCrossEntropyFunction.apply

        def loss(inputs: Inputs) -> Tensor:
            return apply(inputs.student, inputs.labels, None)[0] * upstream

        return loss

    return make


def _liger_parallel_cross_entropy(place: Place) -> LossFunction:
    module = importlib.import_module("liger_kernel.ops.vocab_parallel_cross_entropy")
    options = (place.group, -100, 0.0, "pytorch", "global")

    def loss(inputs: Inputs) -> Tensor:
        logits, labels = inputs.student.unsqueeze(1), inputs.labels.unsqueeze(1)
        return module.LigerVocabParallelCEFunction.apply(logits, labels, *options).mean()

    return loss


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float32, as a careful caller makes them for a loss that takes log-probabilities."""
    return F.log_softmax(logits.float(), dim=-1)


def _liger_kl(place: Place) -> LossFunction:
    apply = importlib.import_module("liger_kernel.ops.kl_div").LigerKLDivLossFunction.apply

    def loss(inputs: Inputs) -> Tensor:
        log_q, log_p = _log_probabilities(inputs.student), _log_probabilities(inputs.teacher)
        return apply(log_q, log_p, "batchmean", True)

    return loss


def _liger_jsd(beta: float) -> Callable[[Place], LossFunction]:
    """Its Triton kernel; where the CuTe DSL is installed it may choose another one by itself."""

    def make(place: Place) -> LossFunction:
        apply = importlib.import_module("liger_kernel.ops.jsd").LigerJSDFunction.apply

        def loss(inputs: Inputs) -> Tensor:
            log_q, log_p = _log_probabilities(inputs.student), _log_probabilities(inputs.teacher)
            return apply(log_q, log_p, None, beta, -100, "nvidia-triton", None)

        return loss

    return make


# ---- Transformer Engine


def _transformer_engine(overwrite: bool) -> Callable[[Place], Step]:
    def prepare(place: Place) -> Step:
        module = _without_packages("transformer_engine", "pytorch.triton.cross_entropy")

        def step(inputs: Inputs) -> None:
            # What its autograd function calls: no smoothing, a loss for each token.
            logits, labels = inputs.student.detach().unsqueeze(1), inputs.labels.unsqueeze(1)
            loss, logits, stats, labels, count, rank, size = module.cross_entropy_forward(
                logits, labels, 0.0, False, place.group, -100, overwrite
            )
            module.cross_entropy_backward(
                logits, stats, labels, count, loss, 0.0, False, rank, size, -100
            )

        return step

    return prepare


def _without_packages(package: str, name: str) -> types.ModuleType:
    """A module of an installed package, without the __init__ of the packages that it and its own
    imports are in: Transformer Engine's load CUDA libraries."""
    for folder in ("", ".common", ".common.triton", ".pytorch", ".pytorch.triton"):
        _replace_package(package + folder)
    return importlib.import_module(f"{package}.{name}")


def _replace_package(name: str) -> None:
    if name in sys.modules:
        return
    found = importlib.util.find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    package = types.ModuleType(name)
    package.__path__ = list(found.submodule_search_locations)
    sys.modules[name] = package


LOSSES = (
    Loss("ours", "cross-entropy", _ours("ce")),
    Loss("Liger, loss last", "cross-entropy", _differentiated(_liger_cross_entropy(1.0))),
    Loss("Liger, loss scaled", "cross-entropy", _differentiated(_liger_cross_entropy(0.5))),
    Loss("TE", "cross-entropy", _transformer_engine(False)),
    Loss("TE, overwrite_input", "cross-entropy", _transformer_engine(True)),
    Loss("ours", "cross-entropy", _ours("ce"), True),
    Loss(
        "Liger, vocabulary-parallel", "cross-entropy",
        _differentiated(_liger_parallel_cross_entropy), True,
    ),
    Loss("TE", "cross-entropy", _transformer_engine(False), True),
    Loss("TE, overwrite_input", "cross-entropy", _transformer_engine(True), True),
    Loss("ours", "forward KL", _ours("kl")),
    Loss(
        "ours, gradient in forward, loss last", "forward KL",
        _ours("kl", in_forward=True, scaled=False),
    ),
    Loss("ours, gradient in forward, loss scaled", "forward KL", _ours("kl", in_forward=True)),
    Loss("log_softmax, Liger KLDivLoss", "forward KL", _differentiated(_liger_kl)),
    Loss("log_softmax, Liger JSD, beta 0", "forward KL", _differentiated(_liger_jsd(0.0))),
    Loss("ours", "forward KL", _ours("kl"), True),
    Loss("ours", "Jensen-Shannon", _differentiated(_our_jensen_shannon)),
    Loss("log_softmax, Liger JSD, beta 0.5", "Jensen-Shannon", _differentiated(_liger_jsd(0.5))),
    Loss("ours", "hybrid", _ours("hybrid")),
    Loss(
        "ours, gradient in forward, loss last", "hybrid",
        _ours("hybrid", in_forward=True, scaled=False),
    ),
)  # fmt: skip
