"""Runs the launchers of csrc/cuda on problems: real host code, real PTX, the executor's device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_int64, c_uint32, c_void_p
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ptx
from stand_in_runtime import HostLaunch, StandInRuntime

from .build import ShippedKernels
from .contract import ALL_FEATURES, EXPONENTS, Divergence, Feature, stat_rows
from .headers import CudaPlan, FusedPlan, SharedMemory, structs
from .objectives import LOSSES, Objective
from .problem import IGNORED, WHOLE_ROWS, Layout, Problem

CAPACITY = 1 << 24  # bytes of device memory; small, for every launch sets up its shadow
STREAM = 17


@dataclass
class Outcome:
    """What one launcher did. rows: those of its result, each [N], or the gradient."""

    code: int  # cudaError_t
    device: ptx.Device
    launches: list[HostLaunch]
    result: np.ndarray
    written: np.ndarray

    def stats(self, features: Feature = ALL_FEATURES) -> dict[str, np.ndarray]:
        return dict(zip(stat_rows(features), self.result, strict=True))


@dataclass
class LossOutcome(Outcome):
    losses: np.ndarray  # [4, N]
    global_stats: np.ndarray


class Launchers:
    """options of every launch: those of Device.launch."""

    def __init__(
        self, runtime: StandInRuntime, library: Path, kernels: ShippedKernels, arch: str = "sm_90a"
    ) -> None:
        self.runtime, self.path, self.kernels = runtime, library, kernels
        self.modules = kernels.modules(arch)
        self.library = runtime.load(library, *self.modules)
        self.options: dict[str, Any] = {}
        self.launches: list[HostLaunch] = []
        for name in ("vocab_stats", "merge_stats", "vocab_gradient", "vocab_fdiv",
                     "vocab_fdiv_gradient", "fused_loss", "loss", "scale_rows"):  # fmt: skip
            getattr(self.library, name).restype = c_int
        self.library.workspace_floats.restype = c_int64
        self.library.stat_name.restype = ctypes.c_char_p
        self.library.struct_size.restype = c_int64
        for name in ("stat_features", "instance_of"):
            getattr(self.library, name).restype = c_uint32

    @contextmanager
    def on(self, arch: str, *kernels: str) -> Iterator[None]:
        """Within, launches run another architecture's kernels with these parts in their names;
        without names, all of them."""
        self.runtime.load(self.path, *self.kernels.modules(arch, kernels or ("",)))
        try:
            yield
        finally:
            self.runtime.load(self.path, *self.modules)

    @contextmanager
    def running(self, module: ptx.Module, **options: Any) -> Iterator[list[HostLaunch]]:
        """Within, launches run this module's kernels, with these options besides their own. Yields
        their list."""
        self.runtime.load(self.path, module)
        self.options, self.launches = options, []
        try:
            yield self.launches
        finally:
            self.options = {}
            self.runtime.load(self.path, *self.modules)

    # ---- plans

    def plan(self, tokens: int, columns: int, element_size: int, num_sms: int) -> CudaPlan:
        plan = CudaPlan()
        self.library.plan(c_int64(tokens), c_int64(columns), c_int64(element_size), c_int(num_sms),
                          byref(plan))  # fmt: skip
        return plan

    def fused_plan(self, columns: int, element_size: int, memory: SharedMemory) -> FusedPlan:
        plan = FusedPlan()
        self.library.fused_plan(c_int64(columns), c_int64(element_size), byref(memory), byref(plan))
        return plan

    # ---- launchers

    def vocab_stats(
        self, problem: Problem, layout: Layout = WHOLE_ROWS, features: Feature = ALL_FEATURES,
        plan: CudaPlan | None = None, **options: Any,
    ) -> Outcome:  # fmt: skip
        device = ptx.Device(CAPACITY)
        plan = plan or layout.plan(problem.columns, problem.dtype)
        rows = len(stat_rows(features))
        args = structs.StatsArgs(
            self._shard(device, problem, layout, features), self._labels(device, problem),
            _params(problem, features), problem.rows,
        )  # fmt: skip
        partial = device.allocate((rows, problem.rows), np.float32, "partial")
        args.partial = partial.address
        workspace = self._workspace(device, plan, problem.rows, features)
        return self._run(
            device, partial, "vocab_stats", args, plan, workspace, **options
        )  # fmt: skip

    def merge_stats(
        self, partial: np.ndarray, problem: Problem, features: Feature = ALL_FEATURES,
        **options: Any,
    ) -> Outcome:  # fmt: skip
        """partial: [shards, rows, N] float32."""
        device = ptx.Device(CAPACITY)
        result = device.allocate(partial.shape[1:], np.float32, "global")
        args = structs.MergeArgs(
            device.upload(partial, "partial").address, len(partial), self._labels(device, problem),
            _params(problem, features), problem.rows, result.address,
        )  # fmt: skip
        return self._run(device, result, "merge_stats", args, **options)

    def vocab_gradient(
        self, problem: Problem, global_stats: np.ndarray, upstream: np.ndarray,
        layout: Layout = WHOLE_ROWS, features: Feature = ALL_FEATURES, *, in_place: bool = False,
        padding: int = 0, plan: CudaPlan | None = None, **options: Any,
    ) -> Outcome:  # fmt: skip
        """global_stats, upstream: [rows, N] float32. padding: columns behind those of tokens."""
        device = ptx.Device(CAPACITY)
        columns = problem.columns + padding
        args, grad = self._gradient_args(
            device, problem, global_stats, upstream, layout, features, columns, in_place
        )
        plan = plan or layout.plan(columns, problem.dtype)
        return self._run(device, grad, "vocab_gradient", args, plan, **options)

    def vocab_fdiv(
        self, problem: Problem, global_stats: np.ndarray, kind: Divergence, skew: float,
        layout: Layout = WHOLE_ROWS, features: Feature = Feature.TEACHER, *,
        exponents: tuple[float, float] = EXPONENTS, **options: Any,
    ) -> Outcome:  # fmt: skip
        """skew: lambda of a mixture."""
        device = ptx.Device(CAPACITY)
        plan = layout.plan(problem.columns, problem.dtype)
        sums = device.allocate((2, problem.rows), np.float32, "sums")
        args = structs.FdivArgs(
            self._shard(device, problem, layout, features), self._labels(device, problem), kind,
            structs.FdivParams(skew, *exponents), features, problem.rows,
            device.upload(global_stats, "global").address, sums.address,
        )  # fmt: skip
        workspace = 0
        if plan.parts > 1:
            shape = (plan.parts, 2, problem.rows)
            workspace = device.allocate(shape, np.float32, "workspace").address
        return self._run(device, sums, "vocab_fdiv", args, plan, workspace, **options)

    def vocab_fdiv_gradient(
        self, problem: Problem, global_stats: np.ndarray, upstream: np.ndarray, sums: np.ndarray,
        upstream_divergence: np.ndarray, kind: Divergence, skew: float,
        layout: Layout = WHOLE_ROWS, features: Feature = Feature.TEACHER, *,
        in_place: bool = False, padding: int = 0, exponents: tuple[float, float] = EXPONENTS,
        **options: Any,
    ) -> Outcome:  # fmt: skip
        """upstream: [rows, N], of the statistics; upstream_divergence: [N]; sums: [2, N]."""
        device = ptx.Device(CAPACITY)
        columns = problem.columns + padding
        stats, grad = self._gradient_args(
            device, problem, global_stats, upstream, layout, features, columns, in_place
        )
        args = structs.FdivGradientArgs(
            stats, kind, structs.FdivParams(skew, *exponents), device.upload(sums, "sums").address,
            device.upload(upstream_divergence, "upstream of the divergence").address,
        )  # fmt: skip
        plan = layout.plan(columns, problem.dtype)
        return self._run(device, grad, "vocab_fdiv_gradient", args, plan, **options)

    def fused_loss(
        self, problem: Problem, objective: Objective, layout: Layout = WHOLE_ROWS, *,
        features: Feature | None = None, in_place: bool = True, padding: int = 0,
        plan: FusedPlan | None = None, **options: Any,
    ) -> LossOutcome:  # fmt: skip
        """layout.parts is the size of the cluster. features: those that the objective needs, or
        more."""
        device, columns = ptx.Device(CAPACITY), problem.columns + padding
        features = objective.features if features is None else features
        student, grad = self._gradient_tensors(device, problem, layout, columns, in_place)
        shape = (len(stat_rows(features)), problem.rows)
        stats = device.allocate(shape, np.float32, "global")
        losses = device.allocate((len(LOSSES), problem.rows), np.float32, "losses")
        args = structs.FusedArgs(
            self._shard(device, problem, layout, Feature.TEACHER, student),
            self._labels(device, problem), _params(problem, features),
            objective.params(problem.inv_temperature), problem.rows, stats.address, losses.address,
            grad.address, grad.row_stride, columns,
        )  # fmt: skip
        plan = plan or layout.fused_plan(columns, problem.dtype)
        outcome = self._run(device, grad, "fused_loss", args, plan, **options)
        outcome.written = outcome.written.all() and stats.written().all() and losses.written().all()
        return LossOutcome(**vars(outcome), losses=losses.read(), global_stats=stats.read())

    def loss(
        self, partial: np.ndarray, problem: Problem, objective: Objective, **options: Any
    ) -> LossOutcome:
        """partial: [shards, rows, N] float32, of the objective's features. Its result is d loss / d
        statistic."""
        device, features = ptx.Device(CAPACITY), objective.features
        shape = partial.shape[1:]
        stats = device.allocate(shape, np.float32, "global")
        upstream = device.allocate(shape, np.float32, "upstream")
        losses = device.allocate((len(LOSSES), problem.rows), np.float32, "losses")
        merge = structs.MergeArgs(
            device.upload(partial, "partial").address, len(partial), self._labels(device, problem),
            _params(problem, features), problem.rows, stats.address,
        )  # fmt: skip
        params = objective.params(problem.inv_temperature)
        args = structs.LossArgs(merge, params, losses.address, upstream.address)
        outcome = self._run(device, upstream, "loss", args, **options)
        outcome.written = outcome.written.all() and stats.written().all() and losses.written().all()
        return LossOutcome(**vars(outcome), losses=losses.read(), global_stats=stats.read())

    def scale_rows(
        self, problem: Problem, scale: np.ndarray, layout: Layout = WHOLE_ROWS, **options: Any
    ) -> Outcome:
        """Of the student's logits; scale: [N] float32."""
        device, dtype = ptx.Device(CAPACITY), problem.dtype
        rows = layout.place(device, 0, "rows", problem.student.shape, dtype)
        rows.write(problem.student)
        args = structs.ScaleArgs(
            dtype.code, rows.address, rows.row_stride, problem.rows, problem.columns,
            device.upload(scale, "scale").address,
        )  # fmt: skip
        return self._run(device, rows, "scale_rows", args, **options)

    # ---- device memory

    def _shard(
        self, device: ptx.Device, problem: Problem, layout: Layout, features: Feature,
        student: ptx.DeviceArray | None = None,
    ) -> structs.LogitsShard:  # fmt: skip
        shape, dtype = problem.student.shape, problem.dtype
        if student is None:
            student = layout.place(device, 0, "student", shape, dtype)
        student.write(problem.student)
        shard = structs.LogitsShard(dtype.code, student.address, student.row_stride)
        if features & Feature.TEACHER:
            teacher = layout.place(device, 1, "teacher", shape, dtype)
            teacher.write(problem.teacher)
            shard.teacher, shard.teacher_stride = teacher.address, teacher.row_stride
        shard.num_columns = problem.columns
        shard.vocab_start, shard.vocab_size = problem.vocab_start, problem.total
        return shard

    def _gradient_args(
        self, device: ptx.Device, problem: Problem, global_stats: np.ndarray,
        upstream: np.ndarray, layout: Layout, features: Feature, columns: int, in_place: bool,
    ) -> tuple[structs.GradientArgs, ptx.DeviceArray]:  # fmt: skip
        """And the gradient that they point to. columns: with padding."""
        student, grad = self._gradient_tensors(device, problem, layout, columns, in_place)
        args = structs.GradientArgs(
            self._shard(device, problem, layout, features, student),
            self._labels(device, problem), _params(problem, features), problem.rows,
            device.upload(global_stats, "global").address,
            device.upload(upstream, "upstream").address,
            grad.address, grad.row_stride, columns,
        )  # fmt: skip
        return args, grad

    def _gradient_tensors(
        self, device: ptx.Device, problem: Problem, layout: Layout, columns: int, in_place: bool
    ) -> tuple[ptx.DeviceArray | None, ptx.DeviceArray]:
        """(student's logits if they lie in the gradient, gradient)."""
        grad = layout.place(device, 0 if in_place else 2, "gradient", (problem.rows, columns),
                            problem.dtype)  # fmt: skip
        # in place, the padding columns exist and hold nothing: they must not be read
        return replace(grad, shape=problem.student.shape) if in_place else None, grad

    def _labels(self, device: ptx.Device, problem: Problem) -> structs.TokenLabels:
        if problem.labels is None:
            return structs.TokenLabels(None, IGNORED)
        return structs.TokenLabels(device.upload(problem.label_ids, "labels").address, IGNORED)

    def _workspace(
        self, device: ptx.Device, plan: CudaPlan, rows: int, features: Feature
    ) -> int | None:
        floats = self.library.workspace_floats(byref(plan), c_int64(rows), c_uint32(features))
        return device.allocate(floats, np.float32, "workspace").address if floats else None

    def _run(
        self, device: ptx.Device, result: ptx.DeviceArray, launcher: str, args: ctypes.Structure,
        *rest: CudaPlan | FusedPlan | int | None, **options: Any,
    ) -> Outcome:  # fmt: skip
        passed = [byref(x) if isinstance(x, ctypes.Structure) else c_void_p(x) for x in rest]
        with self.runtime.using(device, **self.options | options) as launches:
            code = getattr(self.library, launcher)(byref(args), *passed, c_void_p(STREAM))
        self.launches += launches
        return Outcome(code, device, launches, result.read(), result.written())


def _params(problem: Problem, features: Feature) -> structs.StatsParams:
    return structs.StatsParams(features, problem.inv_temperature, problem.power_exponent)
