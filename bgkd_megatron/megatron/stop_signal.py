"""SIGTERM as a wish to stop at the next opportunity, agreed on by all ranks."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from bgkd_megatron.megatron import parallel

__all__ = ["StopSignal"]


class StopSignal:
    """Catches SIGTERM while the with block runs."""

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None
        self.agreed = False
        """Whether the ranks have agreed to stop; the same on all of them."""

    def __enter__(self) -> StopSignal:
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def agree(self) -> bool:
        """Whether any rank has received the signal.  Collective: all ranks get one answer, so they
        stop at the same point even when only one of them, or each at its own time, is told."""
        flag = torch.tensor(int(self._received), device=parallel.device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self.agreed = bool(flag.item())
        return self.agreed
