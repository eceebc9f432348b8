"""All problems at all tensor-parallel sizes for a candidate, and what came of it."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate
from bgkd_megatron.conformance.launch import ProblemResult, launch
from bgkd_megatron.conformance.measure import Cost, Measured
from bgkd_megatron.conformance.problems import COST_PROBLEM, PROBLEMS, Problem
from bgkd_megatron.conformance.verdict import Verdict, judge
from bgkd_megatron.conformance.worker import Failure

__all__ = ["Outcome", "SizeOutcome", "problems_for", "run", "version_of"]


@dataclass(frozen=True)
class SizeOutcome:
    """At one tensor-parallel size."""

    verdicts: dict[str, Verdict]
    """By problem."""
    failure: tuple[str, Failure] | None
    """The problem after the last of `verdicts`, and why neither it nor others were measured."""
    cost: Cost | None
    """Of rank 0."""
    ranks_agree: bool
    """The losses of all ranks are equal bit for bit."""
    from_one_rank: float | None
    """Largest difference of loss or gradient from those of size 1, measured like the errors; None
    without size 1."""
    overwrites: tuple[str, ...]
    """"student", "teacher": whose logits are other numbers after the call."""

    @property
    def passes(self) -> bool:
        return self.failure is None and all(v.mistake is None for v in self.verdicts.values())

    @property
    def value_error(self) -> float:
        return _worst([verdict.value_error for verdict in self.verdicts.values()])

    @property
    def gradient_error(self) -> float:
        return _worst([verdict.gradient_error for verdict in self.verdicts.values()])


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate."""

    candidate: Candidate
    version: str | None
    """Of the package; None where it is not installed, or is the user's own code."""
    sizes: dict[int, SizeOutcome] = field(default_factory=dict)
    """Empty where the package is missing."""

    @property
    def title(self) -> str:
        parts = (self.candidate.package, self.version, self.candidate.name)
        return " ".join(part for part in parts if part)

    @property
    def missing(self) -> str | None:
        """Why it was not run."""
        if self.candidate.package is not None and self.version is None:
            return f"{self.candidate.package} is not installed"
        for size in self.sizes.values():
            if size.failure is not None and size.failure[1].kind == "missing":
                return size.failure[1].message
        return None

    @property
    def passes(self) -> bool:
        return all(size.passes for size in self.sizes.values())


def _worst(errors: Sequence[float]) -> float:
    """nan if there is one."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def problems_for(candidate: Candidate) -> list[str]:
    """A candidate is not asked about padding, or uneven shards, that it does not claim."""
    left_out = {"padded"} if not candidate.knows_padding else set()
    left_out |= {"uneven"} if not candidate.takes_uneven_shards else set()
    return [name for name in PROBLEMS if name not in left_out]


def version_of(package: str | None) -> str | None:
    """The installed version; None for no package, or for one that is not installed."""
    try:
        return None if package is None else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(
    load: Callable[[], Candidate], tp_sizes: Sequence[int], *, timeout: float = 20.0
) -> Outcome:
    """load: a function that a new process can import, or a partial of one.

    A candidate that raises, hangs or kills its process is part of the outcome.
    """
    candidate = load()
    outcome = Outcome(candidate, version_of(candidate.package))
    if outcome.missing:
        return outcome
    problems = problems_for(candidate)
    one_rank: dict[str, list[Measured]] = {}
    for tp_size in tp_sizes:
        if candidate.tp_sizes is not None and tp_size not in candidate.tp_sizes:
            continue
        results = launch(load, tp_size, problems, timeout)
        if tp_size == 1:
            one_rank = _measured(results)
        outcome.sizes[tp_size] = _size_outcome(candidate, results, one_rank)
        if outcome.missing:
            break
    return outcome


def _size_outcome(
    candidate: Candidate,
    results: Mapping[str, ProblemResult],
    one_rank: Mapping[str, list[Measured]],
) -> SizeOutcome:
    verdicts: dict[str, Verdict] = {}
    failed: tuple[str, Failure] | None = None
    differences = []
    for name, ranks in results.items():
        if isinstance(ranks, Failure):
            failed = name, ranks
            continue
        verdicts[name] = judge(candidate, _problem(name), ranks)
        if name in one_rank:
            differences.append(_difference(ranks, one_rank[name][0]))
    measured = _measured(results)
    firsts = [ranks[0] for ranks in measured.values()]
    return SizeOutcome(
        verdicts=verdicts,
        failure=failed,
        cost=measured[COST_PROBLEM][0].cost if COST_PROBLEM in measured else None,
        ranks_agree=all(
            _bits(rank.loss).equal(_bits(ranks[0].loss))
            for ranks in measured.values()
            for rank in ranks
        ),
        from_one_rank=_worst(differences) if differences else None,
        overwrites=tuple(
            name
            for name, found in (
                ("student", any(first.overwrites_student for first in firsts)),
                ("teacher", any(first.overwrites_teacher for first in firsts)),
            )
            if found
        ),
    )


def _measured(results: Mapping[str, ProblemResult]) -> dict[str, list[Measured]]:
    return {name: ranks for name, ranks in results.items() if isinstance(ranks, list)}


def _difference(ranks: Sequence[Measured], one: Measured) -> float:
    """Of the losses and of the gradient from one rank's; 0 where both are the same infinity."""
    gradient = torch.cat([rank.gradient for rank in ranks], dim=1)
    losses = [((rank.loss - one.loss).abs() / (1 + one.loss.abs())).max() for rank in ranks]
    return _worst(
        [*map(float, losses), float((gradient - one.gradient).norm() / one.gradient.norm())]
    )


def _bits(loss: Tensor) -> Tensor:
    """NaN is not equal to itself, its bits are."""
    return loss.contiguous().view(torch.int64)


@functools.cache
def _problem(name: str) -> Problem:
    return PROBLEMS[name]()
