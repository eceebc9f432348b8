"""A process per variant: nothing that one package does to the process reaches another's numbers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypedDict

import torch

from bgkd_megatron.conformance.counters import ByteCounter
from loss_bench.measure import Stopwatch, cache_flush, peak_extra_bytes
from loss_bench.problem import DTYPES, Setting, gradient_error, make_problem
from loss_bench.variants import VARIANTS

_ANSWER_SECONDS = 300.0
# torch._dynamo, which a dispatch mode imports, takes seconds.
_PRELOADED = ["torch._dynamo", "bgkd_megatron.loss", "bgkd_megatron.reference"]


class Seconds(TypedDict):
    """Of one step.  Liger computes its gradients in forward."""

    forward: float
    backward: float


class Facts(TypedDict):
    """What is measured once per setting, apart from time."""

    loss: float
    gradient_error: float | None
    extra_bytes: int
    counted_bytes: int | None


class VariantRunner:
    """Runs one variant, in the worker process."""

    def __init__(self, name: str) -> None:
        self._variant = VARIANTS[name]

    def prepare(self, setting: Setting) -> Facts:
        """Makes the inputs, warms up, and measures what is not time."""
        torch._dynamo.reset()
        self._device = setting.device
        self._flush = cache_flush(setting.device)
        self._loss = self._variant.make(setting)
        self._problem = make_problem(setting, self._variant.task)
        has_loss = self._variant.has_loss
        loss = self._problem.forward(self._loss)
        loss.backward()
        facts = Facts(
            loss=loss.item(),
            gradient_error=gradient_error(self._problem, setting.num_tokens) if has_loss else None,
            extra_bytes=0,
            counted_bytes=None,
        )
        del loss
        self._problem.restore()
        facts["extra_bytes"] = peak_extra_bytes(self._step, setting.device)
        self._problem.restore()
        if not self._variant.compiled:
            with ByteCounter() as counter:
                self._step()
            facts["counted_bytes"] = counter.moved_bytes
        return facts

    def run(self) -> Seconds:
        """One timed step, on threads and memory woken by the copy that restores the inputs."""
        self._problem.restore()
        self._flush()
        return self._step()

    def _step(self) -> Seconds:
        watch = Stopwatch(self._device)
        watch.mark()
        loss = self._problem.forward(self._loss)
        watch.mark()
        loss.backward()
        watch.mark()
        forward, backward = watch.seconds()
        return Seconds(forward=forward, backward=backward)

    def release(self) -> None:
        """Gives the device's memory back to others."""
        self.__dict__.pop("_loss", None)
        self.__dict__.pop("_problem", None)
        self.__dict__.pop("_flush", None)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class CopyRunner:
    """Copies a tensor of the size of the logits: the yardstick of bandwidth."""

    def prepare(self, setting: Setting) -> None:
        self._device = setting.device
        shape = (setting.num_tokens, setting.vocab_size)
        self._source = torch.ones(shape, dtype=DTYPES[setting.dtype], device=setting.device)
        self._target = torch.zeros_like(self._source)
        self._flush = cache_flush(setting.device)

    def run(self) -> Seconds:
        self._target.copy_(self._source)  # wakes the threads and takes the memory, not timed
        self._flush()
        watch = Stopwatch(self._device)
        watch.mark()
        self._target.copy_(self._source)
        watch.mark()
        return Seconds(forward=watch.seconds()[0], backward=0.0)


class WorkerError(Exception):
    """What went wrong in the worker, in one line."""


class Worker:
    """The other end of a runner: calls are sent to its process."""

    def __init__(self, make_runner: Callable[..., Any], *args: str, num_threads: int) -> None:
        # Forked from a process that has imported this much and computed nothing.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make_runner, args, num_threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def call(self, method: str, *args: object) -> Any:
        """The method's result.  Raises WorkerError if it fails, dies, or takes too long."""
        try:
            self._connection.send((method, args))
            if not self._connection.poll(_ANSWER_SECONDS):
                self.stop()
                raise WorkerError(f"no answer within {_ANSWER_SECONDS:.0f} s")
            error, result = self._connection.recv()
        except (EOFError, OSError) as lost:
            self._process.join(timeout=10)
            raise WorkerError(f"the process ended with code {self._process.exitcode}") from lost
        if error:
            raise WorkerError(error)
        return result

    def stop(self) -> None:
        """Ends the process; one that does not listen is killed."""
        self._connection.close()
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()


def _serve(
    connection: Connection, make_runner: Callable[..., Any], args: tuple[str, ...], threads: int
) -> None:
    warnings.filterwarnings("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(threads)
    runner = make_runner(*args)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:  # Worker.stop
            return
        answer: tuple[str | None, Any]
        try:
            answer = (None, getattr(runner, method)(*arguments))
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            answer = (f"{type(error).__name__}: {first_line}", None)
        connection.send(answer)
