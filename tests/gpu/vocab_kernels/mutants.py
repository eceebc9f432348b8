"""Mutants of the kernels that ship (sm_90a), and which of them no test of the values notices.

In tests/gpu: `python -m vocab_kernels.mutants --sample N` runs N of them, chosen so that every
family of kernels has its share. Results go to build/mutants as they come: the same command goes on
where it was cut off. It fails when a survivor is not in survivors.toml, or when fewer than 95 % are
killed; one that is listed counts as a survivor all the same.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from compiler import Compiler, find_tool
from mutation import Mutant, mutants
from ptx import UnsupportedPtxError
from ptx.program import Program
from stand_in_runtime import StandInRuntime

from .build import ROOT, SOURCES, ShippedKernels, build, host_library
from .launchers import Launchers
from .mutant_checks import checks_of, family

LIST = Path(__file__).with_name("survivors.toml")
RESULTS = ROOT / "build" / "mutants"
REQUIRED = 0.95
KILLED, SURVIVED, IMPOSSIBLE = "killed", "survived", "impossible"


@dataclass(frozen=True)
class Listed:
    """Survivors that are known, and why nothing can or need notice them."""

    code: str  # a part of the source line
    instruction: str  # how its name begins
    change: str  # or "any"
    reason: str
    kernel: str = ""  # a part of its mangled name
    unreached: bool = False  # of those alone that no test executes

    def covers(self, result: Result) -> bool:
        return (
            self.code in result.code
            and result.instruction.startswith(self.instruction)
            and self.change in ("any", result.change)
            and self.kernel in result.kernel
            and not (self.unreached and result.reached)
        )


@dataclass(frozen=True)
class Result:
    kernel: str
    index: int  # of the instruction
    instruction: str
    change: str
    place: str  # file:line, and the line that it is inlined at
    code: str  # the source line
    verdict: str
    reached: bool = True  # some test executes the instruction

    @property
    def key(self) -> tuple[str, int, str]:
        return (self.kernel, self.index, self.change)

    def __str__(self) -> str:
        reached = "" if self.reached else ", which no test executes"
        return (
            f"{self.place} `{self.code}`: {self.instruction}: {self.change}{reached}"
            f" ({self.kernel})"
        )


def read_list(path: Path = LIST) -> list[Listed]:
    with path.open("rb") as file:
        return [Listed(**entry) for entry in tomllib.load(file).get("survivor", [])]


# ---- which mutants


def every_mutant(launchers: Launchers, part: str = "") -> list[Mutant]:
    """Those of the kernels with this part in their mangled names."""
    return [
        mutant
        for module in launchers.modules
        for name in sorted(module.kernels)
        if part in name
        for mutant in mutants(module, [name])
    ]


def in_order(every: Sequence[Mutant], seed: int) -> list[Mutant]:
    """At random, and so that the first N are a fair share of every family of kernels, however few
    they are: at least one of each. A family's order depends on its own kernels alone."""
    families: dict[str, list[Mutant]] = {}
    for mutant in every:
        families.setdefault(family(mutant.kernel), []).append(mutant)
    ranked = [
        (rank / len(members), name, members[k])
        for name, members in sorted(families.items())
        for rank, k in enumerate(
            np.random.default_rng([seed, *name.encode()]).permutation(len(members))
        )
    ]
    return [mutant for *_, mutant in sorted(ranked, key=lambda entry: entry[:2])]


# ---- one mutant


class Proof:
    """The tests of the kernels. What each executes of a kernel as it is, is found when needed."""

    def __init__(self, launchers: Launchers) -> None:
        self.launchers = launchers
        self._runs: dict[tuple[str, int], tuple[np.ndarray, int]] = {}

    def _unchanged(self, mutant: Mutant, number: int) -> tuple[np.ndarray, int]:
        """(which instructions the kernel's test of this number executes, in how many steps)."""
        key = (mutant.kernel, number)
        if key not in self._runs:
            executed, steps = np.zeros(len(mutant.code.code), bool), 0
            with self.launchers.running(mutant.original) as launches:
                checks_of(mutant.kernel)[number](self.launchers)
            for launch in launches:
                if launch.kernel == mutant.kernel:
                    executed |= launch.report.executed
                    steps = max(steps, launch.report.steps)
            self._runs[key] = (executed, steps)
        return self._runs[key]

    def notices(self, mutant: Mutant) -> tuple[str, bool]:
        """(verdict, whether a test executes the changed instruction)."""
        module, reached = mutant.module, False
        try:
            Program(module.kernels[mutant.kernel])
        except UnsupportedPtxError:
            return IMPOSSIBLE, False
        for number, check in enumerate(checks_of(mutant.kernel)):
            executed, steps = self._unchanged(mutant, number)
            if not executed[mutant.instruction.index]:
                continue
            reached = True
            # a loop that does not end should not take long
            with self.launchers.running(module, max_steps=2 * steps + 1000):
                try:
                    check(self.launchers)
                except (AssertionError, UnsupportedPtxError):
                    return KILLED, True
        return SURVIVED, reached


def source_line(mutant: Mutant) -> str:
    """Of ours: where a function of CUDA's headers was inlined, that line."""
    place = mutant.instruction.line
    places = [] if place is None else [(place.file, place.line), place.inlined_at]
    for file, line in filter(None, places):
        source = Path(mutant.original.files[file])
        if SOURCES in source.parents:
            return source.read_text().splitlines()[line - 1].strip()
    return "?"


def result_of(proof: Proof, mutant: Mutant) -> Result:
    verdict, reached = proof.notices(mutant)
    place, code = mutant.where.split(" `")[0], source_line(mutant)
    return Result(
        mutant.kernel, mutant.instruction.index, mutant.instruction.name, mutant.change, place,
        code, verdict, reached,
    )  # fmt: skip


# ---- many


def made_launchers(folder: Path) -> Launchers:
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise SystemExit("nvcc is not on PATH, in CUDA_HOME or in site-packages")
    compiler = Compiler(nvcc, folder)
    kernels, runtime = build(compiler), StandInRuntime(compiler)
    return Launchers(runtime, host_library(runtime, kernels), kernels)


_proof: Proof  # what processes share: they are forked
_chosen: list[Mutant]


def _run(number: int) -> Result:
    return result_of(_proof, _chosen[number])


def run_all(proof: Proof, chosen: list[Mutant], jobs: int) -> Iterator[Result]:
    global _proof, _chosen
    _proof, _chosen = proof, chosen
    gc.collect()
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_run, range(len(chosen)))


def results_file(kernels: ShippedKernels) -> Path:
    """One for each state of the kernels."""
    digest = hashlib.sha256("".join(kernels.texts("sm_90a")).encode()).hexdigest()[:16]
    return RESULTS / f"{digest}.jsonl"


def report(results: Iterable[Result], possible: Counter[str]) -> bool:
    """Prints survivors and rates; whether all is well."""
    verdicts: dict[str, Counter[str]] = {}
    survivors, known = [], read_list()
    for result in results:
        verdicts.setdefault(family(result.kernel), Counter())[result.verdict] += 1
        if result.verdict == SURVIVED:
            survivors.append(result)
    unlisted = [s for s in survivors if not any(entry.covers(s) for entry in known)]
    for survivor in sorted(survivors, key=str):
        print("NOT LISTED" if survivor in unlisted else "listed", survivor)
    total: Counter[str] = sum(verdicts.values(), Counter())
    print(f"{'kernel':24} {'mutants':>8} {'tried':>7} {'killed':>7} {'survive':>8} {'rate':>8}")
    for name, count in [*sorted(verdicts.items()), ("all", total)]:
        tried = count[KILLED] + count[SURVIVED]
        of = possible.total() if name == "all" else possible[name]
        print(
            f"{name:24} {of:8} {tried:7} {count[KILLED]:7} {count[SURVIVED]:8}"
            f" {count[KILLED] / max(1, tried):8.2%}"
        )
    tried = total[KILLED] + total[SURVIVED]
    rate = total[KILLED] / max(1, tried)
    listed = len(survivors) - len(unlisted)
    print(
        f"killed: {rate:.2%} of {tried}; {listed} of {len(survivors)} survivors are listed;"
        f" killed or listed: {(total[KILLED] + listed) / max(1, tried):.2%};"
        f" {total[IMPOSSIBLE]} more are no PTX"
    )
    return not unlisted and rate >= REQUIRED


def main() -> int:
    parser = argparse.ArgumentParser(prog="vocab_kernels.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    parser.add_argument("--kernel", default="", help="a part of the mangled names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--again", action="store_true", help="run known survivors once more")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(made_launchers(Path(folder)))
        kernels = proof.launchers.kernels
        every = every_mutant(proof.launchers, arguments.kernel)
        chosen = in_order(every, arguments.seed)[: arguments.sample]
        file = results_file(kernels)
        known = {r.key: r for r in _read(file) if not (arguments.again and r.verdict == SURVIVED)}
        open_ = [m for m in chosen if (m.kernel, m.instruction.index, m.change) not in known]
        print(f"{len(every)} mutants, {len(chosen)} chosen, {len(open_)} to run", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            for done, result in enumerate(run_all(proof, open_, arguments.jobs), 1):
                known[result.key] = result
                print(json.dumps(asdict(result)), file=stream, flush=True)
                if done % 100 == 0:
                    print(f"{done} of {len(open_)}", flush=True)
    keys = {(m.kernel, m.instruction.index, m.change) for m in chosen}
    possible = Counter(family(m.kernel) for m in every)
    return 0 if report([r for key, r in known.items() if key in keys], possible) else 1


def _read(file: Path) -> list[Result]:
    """The last of each: of a survivor there may be more than one."""
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
