"""Losses that bring their gradient with them: it is written over the student's logits as soon as
the losses are known, and backward only multiplies each row by the gradient of its loss.

The statistics of a row need all of it before the gradient needs it again, so what saves the second
read is to be there while the row is still near.

one rank      fused_loss_: the row stays on the chip, 6 bytes per 16-bit logit pair instead of 10
tensor        vocab_stats, all-gather, merge_loss, vocab_stats_backward_ on chunks of tokens; the
parallel      all-gather of one chunk runs beside the statistics of the next, and a chunk that fits
              the processor's cache is read from memory once
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron import ops, vocab_arguments
from bgkd_megatron.objectives.named import NamedObjective
from bgkd_megatron.objectives.token_losses import TokenLosses
from bgkd_megatron.statistics import VocabStats
from bgkd_megatron.vocab_arguments import StatsArguments
from bgkd_megatron.vocab_stats import all_gather, local_stats, named

__all__ = ["losses_with_gradient"]


def losses_with_gradient(
    arguments: StatsArguments, objective: NamedObjective, tokens_per_chunk: int | None = None
) -> tuple[TokenLosses, VocabStats]:
    """Per-token losses [N] and statistics; d loss / d logits overwrites the student's logits.

    arguments: with inplace_backward.  Only `TokenLosses.loss` has a gradient.
    tokens_per_chunk: of the tensor-parallel path; None takes all tokens at once.
    Collective over the shard's group: one all-gather for each chunk.  Raises as `vocab_stats`, and
    ValueError for a chunk without tokens, before anything is changed.
    """
    vocab_arguments.check(arguments)
    vocab_arguments.check_whole(arguments)
    if tokens_per_chunk is not None and not (
        type(tokens_per_chunk) is int and tokens_per_chunk >= 1
    ):
        raise ValueError(f"tokens_per_chunk must be an int, at least 1, got {tokens_per_chunk!r}")
    student_logits, teacher_logits, labels, options = arguments
    grad = student_logits.detach()
    if options.shard.tp_size == 1:
        global_stats, losses = ops.fused_loss_(
            grad,
            teacher_logits,
            labels,
            options.shard.vocab_size,
            *options.of_merge,
            *objective,
        )
    else:
        chunks = list(_chunks(arguments._replace(student_logits=grad), tokens_per_chunk))
        parts = _in_turn(chunks, objective)
        global_stats, losses = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    # Anyone else who saved these logits for a backward of their own must hear of it.
    torch.autograd.graph.increment_version(student_logits)
    stats = named(global_stats, arguments)
    loss, *rest = losses.unbind(0)
    loss = _GradientIsThere.apply(loss, student_logits, grad, stats.valid)
    return TokenLosses(loss, *rest), stats


class _GradientIsThere(torch.autograd.Function):
    """Losses [N] whose gradient with respect to the logits, [N, V_local], is `grad`."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, student_logits: Tensor, grad: Tensor, valid: Tensor
    ) -> Tensor:
        ctx.save_for_backward(grad, valid)  # a change of grad until backward is an error
        ctx.is_spent = False
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "hybrid_loss has no second derivative: call backward() without create_graph=True"
            )
        if ctx.is_spent:
            raise RuntimeError(
                "hybrid_loss: with gradient_in_forward there is one backward, and it has been"
            )
        ctx.is_spent = True
        grad, valid = ctx.saved_tensors
        # Rows that are not valid are 0 and stay so, be the gradient of their loss inf or NaN.
        ops.scale_rows_(grad, torch.where(valid, upstream, 1.0))
        torch.autograd.graph.increment_version(grad)
        return None, grad, None, None


def _chunks(arguments: StatsArguments, tokens_per_chunk: int | None) -> Iterator[StatsArguments]:
    student_logits, teacher_logits, labels, options = arguments
    num_tokens = student_logits.shape[0]
    size = tokens_per_chunk or max(num_tokens, 1)
    for start in range(0, max(num_tokens, 1), size):
        rows = slice(start, start + size)
        yield StatsArguments(
            student_logits[rows],
            None if teacher_logits is None else teacher_logits[rows],
            None if labels is None else labels[rows],
            options,
        )


class _Gathering(NamedTuple):
    """A chunk whose partial statistics are on their way."""

    arguments: StatsArguments
    gathered: Tensor
    """[tp_size, rows, tokens], once `work` is done"""
    work: dist.Work

    @classmethod
    def start(cls, arguments: StatsArguments) -> _Gathering:
        partial = local_stats(arguments)
        shard = arguments.options.shard
        gathered = partial.new_empty((shard.tp_size * partial.shape[0], partial.shape[1]))
        work = all_gather(gathered, partial, group=shard.tp_group, async_op=True)
        return cls(arguments, gathered.view(shard.tp_size, *partial.shape), work)

    def finish(self, objective: NamedObjective) -> tuple[Tensor, Tensor]:
        """Global statistics and losses; the gradient overwrites the chunk's logits."""
        student_logits, teacher_logits, labels, options = self.arguments
        self.work.wait()  # on a GPU only the stream waits
        global_stats, losses, upstream = ops.merge_loss(
            self.gathered, labels, *options.of_merge, *objective
        )
        ops.vocab_stats_backward_(
            student_logits, global_stats, upstream, teacher_logits, labels, *options.of_gradient
        )
        return global_stats, losses


def _in_turn(
    chunks: list[StatsArguments], objective: NamedObjective
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each chunk's statistics and losses; two chunks are in flight."""
    ahead = _Gathering.start(chunks[0])
    for chunk in chunks[1:]:
        current, ahead = ahead, _Gathering.start(chunk)
        yield current.finish(objective)
    yield ahead.finish(objective)
