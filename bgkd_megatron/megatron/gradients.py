"""The gradient of a global batch: Megatron's distributed data parallelism and its schedules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from bgkd_megatron.megatron.config import ParallelConfig
from bgkd_megatron.megatron.loss import DistillationLoss
from bgkd_megatron.schedule import Microbatch, run_schedule

__all__ = ["Gradients"]


class Gradients:
    """Wraps the pieces of a student and fills their gradient buffers.

    Gradients are summed over tokens and divided once by the number of tokens of the global batch,
    whatever the groups of microbatches and the layout.
    """

    def __init__(self, student: Sequence[GPTModel], parallel: ParallelConfig) -> None:
        config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_grad_reduce=parallel.overlap,
            overlap_param_gather=parallel.gathers_in_forward,
        )
        self.model = [
            # Only the first piece's communication can hide behind what others compute.
            DistributedDataParallel(piece.config, config, piece, disable_bucketing=number > 0)
            for number, piece in enumerate(student)
        ]
        """The pieces in Megatron's DistributedDataParallel"""
        self._settings = student[0].config  # the one that Megatron's schedules look at
        self._settings.finalize_model_grads_func = self._finalize
        if parallel.overlap:
            functions = [piece.no_sync for piece in self.model]
            self._settings.no_sync_func = functions if len(functions) > 1 else functions[0]
        self._num_tokens: Tensor | None = None
        self._is_last_group = True

    def of(
        self, loss: DistillationLoss, batches: Sequence[Microbatch], progress: float, iteration: int
    ) -> list[dict[str, Tensor]]:
        """Gradients of the mean loss of `batches` over all ranks; returns the reports of the loss
        (on the last pipeline stage).  Collective."""
        for piece in self.model:
            piece.zero_grad_buffer()
        self._num_tokens = None
        groups = loss.groups(batches)
        reports: list[dict[str, Tensor]] = []
        for number, group in enumerate(groups):
            step = loss.forward_step(group, progress, iteration)
            self._is_last_group = number == len(groups) - 1
            with ExitStack() as stack:
                if not self._is_last_group:
                    for piece in self.model:
                        stack.enter_context(piece.no_sync())
                reports += run_schedule(step, self.model, group, forward_only=False)
        return reports

    def _finalize(
        self, model: list[Any], num_tokens: Tensor | None, *args: Any, **options: Any
    ) -> None:
        """At the end of each schedule: count the tokens; after the last group reduce and divide."""
        if self._num_tokens is not None and num_tokens is not None:
            num_tokens = num_tokens + self._num_tokens
        self._num_tokens = num_tokens
        if self._is_last_group:
            finalize_model_grads(model, num_tokens, *args, **options)
