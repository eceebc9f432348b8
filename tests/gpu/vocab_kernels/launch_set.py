"""A launch of every shipped kernel, for the executor and for the operators of the package alike.

What passes through no exponential, logarithm or reciprocal is exact: its bits must be the same
wherever it is computed. The rest is off by what ex2, lg2 and rcp may lose and by roundings of
other products and sums, on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from .bounded import Bounded, finite
from .contract import (
    ALL_FEATURES,
    BF16,
    EXPONENTS,
    LOGIT_TYPES,
    Divergence,
    LogitType,
    SoftTerm,
    Weighting,
    stat_rows,
)
from .formulas import stacked
from .gradients import FDivergence, stats_gradient
from .headers import CudaPlan, FusedPlan, SharedMemory
from .launchers import Launchers, Outcome
from .objectives import Evaluated, Objective
from .problem import IGNORED, Layout, Problem
from .rows import FINITE, INFINITE, ordinary
from .upstream import packed, upstream_of

SKEW = float(np.float32(0.3))
EXACT_PARTIAL = frozenset({"student_max", "student_argmax", "student_at_label", "teacher_max",
                           "teacher_argmax", "student_at_teacher_argmax",
                           "teacher_at_label"})  # fmt: skip
EXACT_GLOBAL = frozenset({"student_max", "student_argmax", "teacher_max", "teacher_argmax"})
KINDS = ("both labels", "general", "softened", "hybrid", "zero", "cross entropy")

Arrays = dict[str, np.ndarray]


class Gpu(Protocol):
    """What plans depend on."""

    num_sms: int
    shared_per_block: int
    shared_per_sm: int
    max_cluster: int


@dataclass(frozen=True)
class OnDevice(Layout):
    """Rows without padding, cut as the operators would cut them on this device."""

    launchers: Launchers | None = None
    gpu: Gpu | None = None
    tokens: int = 0

    def plan(self, columns: int, dtype: LogitType) -> CudaPlan:
        assert self.launchers is not None
        assert self.gpu is not None
        return self.launchers.plan(self.tokens, columns, dtype.size, self.gpu.num_sms)

    def fused_plan(self, columns: int, dtype: LogitType) -> FusedPlan:
        assert self.launchers is not None
        assert self.gpu is not None
        gpu = self.gpu
        memory = SharedMemory(gpu.shared_per_block, gpu.shared_per_sm, gpu.max_cluster)
        return self.launchers.fused_plan(columns, dtype.size, memory)


@dataclass(frozen=True)
class Part:
    """A part of a launch's result. allowed: of its shape; None where it must be exact."""

    values: np.ndarray
    allowed: Bounded | None


@dataclass(frozen=True)
class Launch:
    kernel: str
    problem: Problem
    divergence: Divergence | None = None
    objective: Objective | None = None

    @property
    def name(self) -> str:
        of = self.divergence.name.lower() if self.divergence is not None else ""
        if self.objective is not None:
            of = self.objective.kl_stat
        p = self.problem
        return " ".join(filter(None, [self.kernel, of, f"{p.rows} x {p.columns}", p.dtype.name]))

    # ---- inputs, the same on both sides

    @property
    def features(self) -> Any:
        return ALL_FEATURES if self.objective is None else self.objective.features

    def partial(self) -> np.ndarray:
        """[shards, rows, N]"""
        cuts = [self.problem.columns // 3, self.problem.columns // 2]
        shards = self.problem.shards(cuts)
        return np.stack([stacked(shard.model.partial(), self.features) for shard in shards])

    def global_stats(self) -> np.ndarray:
        return stacked(self.problem.model.finished(), ALL_FEATURES)

    def upstream(self) -> Arrays:
        kinds = [KINDS[row % len(KINDS)] for row in range(self.problem.rows)]
        for row, pattern in enumerate(self.problem.patterns):
            if pattern in INFINITE:  # a gradient of an infinite divergence is not defined
                kinds[row] = "both labels"
        return upstream_of(kinds)

    def packed_upstream(self) -> np.ndarray:
        return packed(self.upstream(), self.problem.rows, ALL_FEATURES)

    def of_divergence(self) -> np.ndarray:
        return np.linspace(-1, 1, self.problem.rows).astype(np.float32)

    def sums(self) -> np.ndarray:
        """Of the divergence, [2, N]."""
        exact = self._exact_divergence()
        return np.stack([exact.divergence.value, exact.slope.value]).astype(np.float32)

    def _exact_divergence(self) -> FDivergence:
        assert self.divergence is not None
        return FDivergence(self.problem.model, self.divergence, SKEW)

    def scale(self) -> np.ndarray:
        return np.resize(np.float32([0.75, 1.0, 0.0, -3.0, 1e-3]), self.problem.rows)

    # ---- the two sides

    def on_executor(self, launchers: Launchers, gpu: Gpu) -> Arrays:
        """Raises AssertionError where a kernel does what a GPU would not forgive."""
        p, layout = self.problem, OnDevice(launchers=launchers, gpu=gpu, tokens=self.problem.rows)
        outcome: Any
        match self.kernel:
            case "statistics":
                outcome = launchers.vocab_stats(p, layout)
            case "merge":
                outcome = launchers.merge_stats(self.partial(), p)
            case "loss":
                outcome = launchers.loss(self.partial(), p, self.objective)
            case "gradient":
                outcome = launchers.vocab_gradient(
                    p, self.global_stats(), self.packed_upstream(), layout
                )
            case "divergence":
                outcome = launchers.vocab_fdiv(
                    p, self.global_stats(), self.divergence, SKEW, layout, ALL_FEATURES
                )
            case "gradient with divergence":
                outcome = launchers.vocab_fdiv_gradient(
                    p, self.global_stats(), self.packed_upstream(), self.sums(),
                    self.of_divergence(), self.divergence, SKEW, layout, ALL_FEATURES,
                )  # fmt: skip
            case "fused loss":
                outcome = launchers.fused_loss(p, self.objective, layout)
            case "scale rows":
                outcome = launchers.scale_rows(p, self.scale(), layout)
        assert outcome.device.findings == [], outcome.device.findings[0]
        assert outcome.code == 0, f"cudaError_t {outcome.code}"
        return self._named(outcome)

    def _named(self, outcome: Outcome) -> Arrays:
        found: Any = outcome
        match self.kernel:
            case "statistics" | "merge":
                return {"statistics": found.result}
            case "loss":
                return {"statistics": found.global_stats, "losses": found.losses,
                        "upstream": found.result}  # fmt: skip
            case "fused loss":
                return {"statistics": found.global_stats, "losses": found.losses,
                        "gradient": found.result}  # fmt: skip
            case "divergence":
                return {"sums": found.result}
            case "scale rows":
                return {"rows": found.result}
        return {"gradient": found.result}

    def on_operators(self, torch: ModuleType, ops: ModuleType, device: str) -> Arrays:
        p, objective = self.problem, self.objective

        def tensor(array: np.ndarray) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        def logits(stored: np.ndarray) -> Any:
            bits = tensor(stored.view(np.int32 if p.dtype.size == 4 else np.int16).copy())
            names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
            return bits.view(names[p.dtype.name])

        def array(result: Any) -> np.ndarray:
            if result.dtype == torch.bfloat16:
                return result.view(torch.int16).cpu().numpy().view(np.uint16)
            return result.cpu().numpy()

        z, t, labels = logits(p.student), logits(p.teacher), tensor(p.label_ids)
        temperature, power, features = 1 / p.inv_temperature, p.power_exponent, int(self.features)
        merging = (labels, features, temperature, power, IGNORED)
        gradient = (z, t, labels, p.total, 0, features, temperature)
        if objective is not None:
            named = objective.arguments
        match self.kernel:
            case "statistics":
                found = {"statistics": ops.vocab_stats(*gradient, power, IGNORED)}
            case "merge":
                found = {"statistics": ops.merge_stats(tensor(self.partial()), *merging)}
            case "loss":
                results = ops.merge_loss(tensor(self.partial()), *merging, *named)
                found = dict(zip(("statistics", "losses", "upstream"), results, strict=True))
            case "gradient":
                stats, upstream = tensor(self.global_stats()), tensor(self.packed_upstream())
                found = {"gradient": ops.vocab_stats_backward(stats, upstream, *gradient, IGNORED)}
            case "divergence":
                stats = tensor(self.global_stats())
                found = {"sums": ops.vocab_fdiv(z, t, labels, stats, p.total, 0, features,
                                                int(self.divergence), SKEW, *EXPONENTS,
                                                IGNORED)}  # fmt: skip
            case "gradient with divergence":
                inputs = (self.global_stats(), self.packed_upstream(), self.sums(),
                          self.of_divergence())  # fmt: skip
                found = {"gradient": ops.vocab_fdiv_backward(
                    *map(tensor, inputs), *gradient, int(self.divergence), SKEW, *EXPONENTS, IGNORED
                )}  # fmt: skip
            case "fused loss":
                stats, losses = ops.fused_loss_(
                    z, t, labels, p.total, *merging[1:], *named
                )  # fmt: skip
                found = {"statistics": stats, "losses": losses, "gradient": z}
            case "scale rows":
                ops.scale_rows_(z, tensor(self.scale()))
                found = {"rows": z}
        return {name: array(result) for name, result in found.items()}

    # ---- what may differ

    def allowed(self) -> dict[str, list[Bounded | None]]:
        """For each row of an array of numbers for tokens, or for all of a gradient."""
        p, features = self.problem, self.features
        names, exact = stat_rows(features), EXACT_GLOBAL
        bounds = p.model.finished()
        if self.kernel == "statistics":
            bounds, exact = p.model.partial(), EXACT_PARTIAL
        stats = [None if name in exact else bounds[name] for name in names]
        match self.kernel:
            case "statistics" | "merge":
                return {"statistics": stats}
            case "loss" | "fused loss":
                assert self.objective is not None
                evaluated = Evaluated(self.objective, p.model)
                found: dict[str, list[Bounded | None]] = {
                    "statistics": stats, "losses": [*evaluated.losses],
                }  # fmt: skip
                if self.kernel == "loss":
                    found["upstream"] = [evaluated.upstream.get(name) for name in names]
                else:
                    found["gradient"] = [self._rounded(evaluated.gradient)]
                return found
            case "gradient":
                return {"gradient": [self._rounded(stats_gradient(p.model, self.upstream()))]}
            case "divergence":
                exact_divergence = self._exact_divergence()
                return {"sums": [exact_divergence.divergence, exact_divergence.slope]}
            case "gradient with divergence":
                both = self._exact_divergence().combined_gradient(
                    self.upstream(), self.of_divergence()
                )
                return {"gradient": [self._rounded(both)]}
        return {"rows": [None]}

    def _rounded(self, gradient: Bounded) -> Bounded:
        size = np.abs(finite(gradient.value)) + finite(np.asarray(gradient.error))
        return Bounded(gradient.value, gradient.error + self.problem.dtype.rounding(size))

    def parts(self, arrays: Arrays) -> Iterator[tuple[str, Part]]:
        """Each with what it may be off, by name."""
        for name, rows in self.allowed().items():
            if name == "rows":
                yield name, Part(arrays[name], None)
                continue
            if name == "gradient":
                skipped, bound = self.problem.model.skipped, rows[0]
                assert bound is not None
                yield "gradient of ignored rows", Part(arrays[name][skipped], None)
                yield "gradient", Part(arrays[name][~skipped], bound[~skipped])
                continue
            for index, (row, bound) in enumerate(zip(arrays[name], rows, strict=True)):
                yield f"{name}[{index}]", Part(row, bound)


def launch_set() -> list[Launch]:
    """Rows of every kind in every type; a long row, which is cut into parts or held by a
    cluster."""
    patterns = (*FINITE, *INFINITE, ordinary)
    labels = (0.0, 1.0, *[0.5] * (len(patterns) - 3), IGNORED)
    problems = [Problem(dtype, 130 * dtype.vector + 3, patterns, labels) for dtype in LOGIT_TYPES]
    problems.append(Problem(BF16, 20_000, (ordinary,), (0.5,)))
    return [launch for problem in problems for launch in _launches(problem)]


def _launches(problem: Problem) -> Iterator[Launch]:
    for kernel in ("statistics", "merge", "gradient", "scale rows"):
        yield Launch(kernel, problem)
    for divergence in Divergence:
        yield Launch("divergence", problem, divergence)
        yield Launch("gradient with divergence", problem, divergence)
    finite_rows = [pattern for pattern in problem.patterns if pattern not in INFINITE]
    labels = (*[0.5] * (len(finite_rows) - 1), IGNORED if len(finite_rows) > 1 else 0.5)
    rows = Problem(problem.dtype, problem.columns, finite_rows, labels)
    for objective in (
        Objective(SoftTerm.FORWARD, Weighting.SHANNON),
        Objective(SoftTerm.REVERSE, Weighting.TSALLIS),
        Objective(SoftTerm.FORWARD, Weighting.CONFIDENCE, softened=True),
        Objective(SoftTerm.ADAPTIVE, Weighting.WSL, regularizer=0.125),
    ):
        yield Launch("loss", rows, objective=objective)
        yield Launch("fused loss", rows, objective=objective)
