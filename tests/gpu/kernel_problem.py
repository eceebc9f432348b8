"""The shipped kernels in the executor: their argument structs, and launches as the host makes them.

The structs mirror csrc/vocab_stats.h, csrc/vocab_fdiv.h and csrc/fused_loss.h.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ptx
from bfloat16 import from_bfloat16, to_bfloat16

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
FLAGS = ("-std=c++20", "-ftz=true")
ALL_FEATURES, NUM_STATS = 255, 18
TEMPERATURE, POWER = 2.5, 0.3
IGNORE = -100
_POINTER, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Shard(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int),
        *(("student", _POINTER), ("student_stride", _INT64)),
        *(("teacher", _POINTER), ("teacher_stride", _INT64)),
        *(("num_columns", _INT64), ("vocab_start", _INT64), ("vocab_size", _INT64)),
    )


class _Labels(ctypes.Structure):
    _fields_ = (("ids", _POINTER), ("ignore_index", _INT64))


class _Params(ctypes.Structure):
    _fields_ = (("features", ctypes.c_uint32), ("inv_temperature", _FLOAT), ("power", _FLOAT))


class _Objective(ctypes.Structure):
    _fields_ = (
        *(("soft", ctypes.c_int), ("softened", ctypes.c_bool), ("soft_scale", _FLOAT)),
        *(("weight", ctypes.c_int), ("static_weight", _FLOAT), ("entropy_scale", _FLOAT)),
        ("hard", ctypes.c_int),
    )


_HEAD = (("logits", _Shard), ("labels", _Labels), ("params", _Params))
_GRAD = (("grad", _POINTER), ("grad_stride", _INT64), ("grad_columns", _INT64))


class _StatsArgs(ctypes.Structure):
    _fields_ = (*_HEAD, ("num_tokens", _INT64), ("partial", _POINTER))


class _GradientArgs(ctypes.Structure):
    _fields_ = (*_HEAD, ("num_tokens", _INT64), ("stats", _POINTER), ("upstream", _POINTER), *_GRAD)


class FdivArgs(ctypes.Structure):
    _fields_ = (
        *(("logits", _Shard), ("labels", _Labels)),
        *(("kind", ctypes.c_int), ("lam", _FLOAT), ("features", ctypes.c_uint32)),
        *(("num_tokens", _INT64), ("stats", _POINTER), ("sums", _POINTER)),
    )


class FdivGradientArgs(ctypes.Structure):
    # One after the other, for a struct within a struct has the same layout here.
    _fields_ = (
        *_GradientArgs._fields_,
        *(("kind", ctypes.c_int), ("lam", _FLOAT), ("sums", _POINTER), ("of_value", _POINTER)),
    )


class _FusedArgs(ctypes.Structure):
    _fields_ = (
        *(*_HEAD, ("objective", _Objective), ("num_tokens", _INT64)),
        *(("stats", _POINTER), ("losses", _POINTER), *_GRAD),
    )


@dataclass
class Problem:
    """bfloat16 logits of N tokens on a device of the executor.

    Rows are `slack` columns apart, which do not exist; the first row starts `start` bytes past a
    256-byte border.
    """

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    slack: int = 8
    start: int = 0

    def __post_init__(self) -> None:
        self.num_tokens, self.vocab_size = self.student.shape
        self.stride = self.vocab_size + self.slack
        self.device = ptx.Device()
        options = {"row_stride": self.stride, "start": self.start}
        self.z = self.device.upload(to_bfloat16(self.student), "student", **options)
        self.t = self.device.upload(to_bfloat16(self.teacher), "teacher", **options)
        self.ids = self.device.upload(self.labels, "labels")

    def head(self) -> tuple[_Shard, _Labels, _Params]:
        z, t, size = self.z.address, self.t.address, self.vocab_size
        params = _Params(ALL_FEATURES, 1 / TEMPERATURE, POWER)
        shard = _Shard(1, z, self.stride, t, self.stride, size, 0, size)
        return (
            shard,
            _Labels(self.ids.address, IGNORE),
            params,
        )

    def columns_per_part(self, threads: int, parts: int) -> int:
        round_ = 16 * threads
        columns = math.ceil(self.vocab_size / parts)
        return math.ceil(columns / round_) * round_

    def partial(self, module: ptx.Module, threads: int, parts: int = 1, **run: float) -> np.ndarray:
        """Partial statistics, [parts, NUM_STATS, N]."""
        out = self.device.allocate((parts * NUM_STATS, self.num_tokens), np.float32, "partial")
        args = _StatsArgs(*self.head(), self.num_tokens, out.address)
        columns = self.columns_per_part(threads, parts)
        self.device.launch(
            module, f"vocab_stats_kernelI13__nv_bfloat16Lj{ALL_FEATURES}E",
            grid=(self.num_tokens, parts), block=threads,
            arguments=[bytes(args), out.address, columns], **run,
        )  # fmt: skip
        return out.read().reshape(parts, NUM_STATS, self.num_tokens)

    def gradient(
        self,
        module: ptx.Module,
        stats: np.ndarray,
        upstream: np.ndarray,
        threads: int,
        **run: float,
    ) -> np.ndarray:
        """d loss / d student logits, written over them."""
        stats_array = self.device.upload(stats.astype(np.float32), "stats")
        upstream_array = self.device.upload(upstream.astype(np.float32), "upstream")
        args = _GradientArgs(
            *self.head(), self.num_tokens, stats_array.address, upstream_array.address,
            self.z.address, self.stride, self.vocab_size,
        )  # fmt: skip
        self.device.launch(
            module, "vocab_gradient_kernelI13__nv_bfloat16E", grid=(self.num_tokens, 1),
            block=threads, arguments=[bytes(args), self.columns_per_part(threads, 1)],
        )  # fmt: skip
        return from_bfloat16(self.z.read())

    def fused(
        self,
        module: ptx.Module,
        objective: tuple[float, ...],
        threads: int,
        cluster: int,
        **run: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses [4, N] and the gradient."""
        stats = self.device.allocate((NUM_STATS, self.num_tokens), np.float32, "stats")
        losses = self.device.allocate((4, self.num_tokens), np.float32, "losses")
        args = _FusedArgs(
            *self.head(), _Objective(*objective), self.num_tokens, stats.address, losses.address,
            self.z.address, self.stride, self.vocab_size,
        )  # fmt: skip
        columns = self.columns_per_part(threads, cluster)
        self.device.launch(
            module, f"fused_kernelI13__nv_bfloat16Lj{ALL_FEATURES}E",
            grid=(self.num_tokens, cluster), block=threads, cluster=(1, cluster, 1),
            dynamic_shared=2 * 2 * columns, arguments=[bytes(args), columns], **run,
        )  # fmt: skip
        return losses.read(), from_bfloat16(self.z.read())
