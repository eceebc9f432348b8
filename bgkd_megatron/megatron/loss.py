"""The distillation loss inside Megatron's forward step.

GPTModel calls `output_processor` where the last hidden states, the output layer and its weight are
at hand.  There the student's logits are made once, compared with the teacher's, and given back
their own memory as the gradient; no logits-sized tensor is added.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from bgkd_megatron.final_logits import NO_CHANGE, FinalLogits
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives.hybrid import HybridObjective
from bgkd_megatron.objectives.metrics import bridges_and_gardens, token_metrics
from bgkd_megatron.ranges import named_range
from bgkd_megatron.schedule import ForwardStep, Microbatch
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.teacher.states import Teacher, TeacherStates
from bgkd_megatron.vocab_shard import VocabShard

__all__ = ["IGNORE_INDEX", "DistillationLoss", "mean_metrics"]

IGNORE_INDEX = -100
"""Label of a token that counts neither in the loss nor in its denominator."""

_TOKENS = "tokens"
_IN_BUCKETS = ("loss", "hard_loss", "soft_loss", "forward_kl")


@dataclass
class _Context:
    """What the hook needs for one microbatch, and the sums it leaves for the report."""

    teacher: TeacherStates | None
    progress: float
    seed: int
    document_ends: Tensor | None
    sums: dict[str, Tensor] = field(default_factory=dict)


LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


class DistillationLoss:
    """Makes the forward steps that Megatron's schedules run.

    objective: of the real vocabulary; columns beyond it take part in no sum and get gradient 0.
    teacher: may be None when the objective needs none.  Needs Megatron's process groups.
    gradient_in_forward: as in `hybrid_loss`.
    seed: of hard labels that are drawn.
    final_logits: the student's.  A soft-cap's derivative needs its result, over which no gradient
        may then be written: it costs memory of the size of the logits.
    The ranks compare what they pass to the loss at the first microbatch, and never again.
    """

    def __init__(
        self,
        objective: HybridObjective,
        teacher: Teacher | None = None,
        *,
        gradient_in_forward: bool = False,
        seed: int = 0,
        final_logits: FinalLogits = NO_CHANGE,
    ) -> None:
        self.objective = objective
        self.teacher = teacher
        self.gradient_in_forward = gradient_in_forward
        self._seed = seed
        self._final_logits = final_logits
        self._check_ranks = True
        group = parallel_state.get_tensor_model_parallel_group()
        self._tp_group = group if group.size() > 1 else None

    def groups(self, batches: Sequence[Microbatch]) -> list[Sequence[Microbatch]]:
        """The microbatches of a step, in groups that each take a forward step and a schedule of
        their own: as the teacher wants it."""
        return [batches] if self.teacher is None else self.teacher.groups(batches)

    def forward_step(
        self, batches: Sequence[Microbatch], progress: float = 0.0, iteration: int = 0
    ) -> ForwardStep:
        """A `forward_step_func` that goes once through `batches`; with a pipeline the teacher sees
        them now.

        progress: part of the run that is done, in [0, 1].  iteration: with it, the microbatch and
        the data-parallel rank the labels are drawn anew.  The loss function it returns gives the
        sum of the losses, the number of tokens in it (int32) and the sums of the metrics: what
        calculate_per_token_loss=True expects.
        """
        states = None if self.teacher is None else self.teacher.states(batches)
        numbers = itertools.count()
        data_parallel = parallel_state.get_data_parallel_rank(with_context_parallel=True)

        def step(batches: Iterator[Microbatch], model: Any) -> tuple[Tensor, LossFunction]:
            batch = next(batches)
            context = None
            if get_attr_wrapped_model(model, "post_process"):
                seed = _mixed(self._seed, iteration, next(numbers), data_parallel)
                teacher = None if states is None else next(states)
                context = _Context(teacher, progress, seed, batch.document_ends)
            with named_range("student"):
                loss = model(
                    batch.tokens,
                    batch.position_ids,
                    attention_mask=None,  # causal
                    labels=batch.labels,
                    # Read by heads that look further ahead only.
                    loss_mask=(batch.labels != IGNORE_INDEX).float(),
                    output_processor=self._process_output,
                    output_processor_context=context,
                )
            return loss, partial(_sum_loss, labels=batch.labels, context=context)

        return step

    def _process_output(self, **arguments: Any) -> Tensor:
        with named_range("loss"):
            return self._token_losses(**arguments)

    def _token_losses(
        self,
        *,
        hidden_states: Tensor,
        output_layer: Any,
        output_weight: Tensor | None,
        labels: Tensor,
        scale_logits: Callable[[Tensor], Tensor],
        context: _Context,
        **_: Any,
    ) -> Tensor:
        """Hidden states to per-token losses, [b, s]."""
        logits, _bias = output_layer(hidden_states, weight=output_weight)
        logits = self._final_logits(scale_logits(logits))  # [s, b, V_local]
        may_overwrite = logits.requires_grad and self._final_logits.softcap is None
        seq_length, batch_size, columns = logits.shape
        teacher_logits = None
        if context.teacher is not None:
            with torch.no_grad():
                teacher_logits = context.teacher.logits().flatten(0, 1)
        labels = labels.t().reshape(-1)  # in the order of the logits: [s, b]
        losses, stats = hybrid_loss(
            logits.flatten(0, 1),
            teacher_logits,
            labels,
            self.objective,
            shard=VocabShard.even(self.objective.vocab_size, columns, self._tp_group),
            progress=context.progress,
            inplace_backward=may_overwrite,
            gradient_in_forward=self.gradient_in_forward and may_overwrite,
            seed=context.seed if self.objective.config.draws_labels else None,
            sequences=self._sequences(seq_length, batch_size, context),
            check_ranks=self._check_ranks,
        )
        self._check_ranks = False
        metrics = token_metrics(stats, losses, labels)
        context.sums = {name: value.sum() for name, value in metrics.items()}
        if "teacher_entropy" in metrics:
            cp_group = parallel_state.get_context_parallel_group()
            for bucket, members in bridges_and_gardens(stats, group=cp_group).items():
                for name in _IN_BUCKETS:
                    of_members = torch.where(members, metrics[name], 0.0)
                    context.sums[f"{bucket}/{name}"] = of_members.sum()
                context.sums[f"{bucket}/{_TOKENS}"] = members.sum()
        return losses.loss.view(seq_length, batch_size).t().contiguous()

    def _sequences(
        self, seq_length: int, batch_size: int, context: _Context
    ) -> SequenceLayout | None:
        if not self.objective.config.couples_positions:
            return None
        ends = context.document_ends
        return SequenceLayout(
            seq_length,
            batch_size,
            cp_group=parallel_state.get_context_parallel_group(),
            ends=None if ends is None else ends.t().reshape(-1),
        )


def _mixed(*numbers: int) -> int:
    """A seed that depends on all of them, in [0, 2^63)."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _sum_loss(
    loss: Tensor, *, labels: Tensor, context: _Context | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    assert context is not None  # Megatron asks for the loss on the last stage only
    num_tokens = (labels != IGNORE_INDEX).sum(dtype=torch.int)
    return loss.sum(), num_tokens, {**context.sums, _TOKENS: num_tokens}


def mean_metrics(reports: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the tokens of all reports of all data-parallel ranks; "tokens" is their number.
    "bridge/loss" is the mean over the tokens of that bucket.

    Collective: reports come from the last pipeline stage, every rank learns the means.  Without a
    token there are none.
    """
    means = [_means(reports) if reports else {}]
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    if pipeline.size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast_object_list(means, src=last, group=pipeline)
    return means[0]


def _means(reports: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    names = list(reports[0])
    sums = torch.stack([torch.stack([r[name].double() for name in names]) for r in reports]).sum(0)
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    values = dict(zip(names, sums.tolist(), strict=True))
    means = {_TOKENS: values[_TOKENS]}
    for name, value in values.items():
        bucket, slash, metric = name.rpartition("/")
        if metric != _TOKENS and (count := values[f"{bucket}{slash}{_TOKENS}"]):
            means[name] = value / count
    return means
