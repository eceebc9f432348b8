"""The sample's test set notices every change of an instruction."""

from __future__ import annotations

from pathlib import Path

import ptx
from compiler import Compiler
from mutation import mutants, surviving
from sample_problem import FLAGS, SampleProblem, run

SOURCE = Path(__file__).parent / "kernels" / "sample_instances.cu"
KERNELS = ["sample_statsILi256E", "sample_gradientILi256E"]
# rows longer (by one vector) and shorter than one step of the block; peaks so far above the rest
# that exponentials overflow when a maximum is not one
PROBLEMS = [SampleProblem(2, 2056), SampleProblem(1, 1000, peak=500.0)]


def unnoticed(module: ptx.Module) -> bool:
    for problem in PROBLEMS:
        result = run(module, problem, max_steps=20_000)
        if result.device.findings or not problem.divergence_error(result.stats) < 1e-6:
            return False
        if not problem.gradient_is_right(result.gradient):
            return False
    return True


def test_the_unchanged_kernels_pass(nvcc: Compiler) -> None:
    assert unnoticed(nvcc.ptx(SOURCE, flags=FLAGS))


def test_mutants_are_noticed(nvcc: Compiler) -> None:
    outcome = surviving(nvcc.ptx_text(SOURCE, flags=FLAGS), KERNELS, unnoticed, limit=60)
    assert outcome.tried == 60
    assert [str(mutant) for mutant in outcome.survivors] == []


def test_every_barrier_and_store_has_a_mutant(nvcc: Compiler) -> None:
    text = nvcc.ptx_text(SOURCE, flags=FLAGS)
    removed = [m for m in mutants(ptx.parse(text), KERNELS) if m.change == "removed"]
    # a barrier in each kernel; 5 + 5 and 4 + 1 stores
    assert len(removed) == 17
