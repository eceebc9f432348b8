"""The tests of the kernels' values notice when a kernel is not what it should be.

A small sample of mutants; `python -m vocab_kernels.mutants` runs more.
"""

from __future__ import annotations

import re
from collections import Counter

from vocab_kernels.headers import every_kernel
from vocab_kernels.launchers import Launchers
from vocab_kernels.mutant_checks import checks_of, family
from vocab_kernels.mutants import (
    SURVIVED,
    Proof,
    every_mutant,
    in_order,
    report,
    result_of,
)

SAMPLE = 30
# of every family one instance, for what the tests do with a kernel as it is takes time as well
INSTANCE = re.compile(r"kernelI13__nv_bfloat16(E|Lj63E|L.*DivergenceE0E)|kernelE|kernelILb")


def test_every_kernel_has_tests(launchers: Launchers) -> None:
    names = [name for module in launchers.modules for name in module.kernels]
    assert len(names) == len(every_kernel())
    assert all(checks_of(name) for name in names)


def test_sample_is_noticed(launchers: Launchers) -> None:
    every = [mutant for mutant in every_mutant(launchers) if INSTANCE.search(mutant.kernel)]
    names = [name for module in launchers.modules for name in module.kernels]
    chosen, proof = in_order(every, 0)[:SAMPLE], Proof(launchers)
    assert {family(mutant.kernel) for mutant in chosen} == set(map(family, names))
    results = [result_of(proof, mutant) for mutant in chosen]
    report(results, Counter(family(mutant.kernel) for mutant in every))
    # Which mutants the sample holds changes with every change of a kernel, and not all survivors
    # are listed yet: the rate alone is held.
    survivors = [r for r in results if r.verdict == SURVIVED]
    assert len(survivors) <= SAMPLE // 10, "\n".join(map(str, survivors))
