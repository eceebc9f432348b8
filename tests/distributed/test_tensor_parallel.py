"""Real processes: the operators on 2, 3 and 4 ranks equal one rank, with one collective a sweep.

2 ranks: the smallest; 3: no vocabulary of a power of two divides; 4: merges of merged shards.
One rank is test_vocab_stats.py; the family of objectives is here with one rank, too.
"""

from __future__ import annotations

import functools

import pytest
from communication_cases import CASES as COMMUNICATION
from communication_cases import SLOW_CASES
from family_cases import CASES as FAMILY
from fdiv_cases import CASES as FDIV
from in_forward_cases import CASES as IN_FORWARD
from launch import run_cases
from sequence_cases import CASES as SEQUENCES
from sequence_cases import CASES_OF_FOUR
from sharding_cases import CASES as SHARDING

CASES = SHARDING | FDIV | COMMUNICATION | IN_FORWARD
BOTH = CASES | FAMILY | SEQUENCES
CASES_OF_SIZE = {1: FAMILY, 2: BOTH | SLOW_CASES, 3: CASES, 4: BOTH | CASES_OF_FOUR}


@functools.cache
def failures(size: int) -> dict[str, str]:
    """What failed, by case, in the one launch of this world size."""
    return run_cases(size, CASES_OF_SIZE[size])


@pytest.mark.parametrize(
    ("size", "case"), [(size, case) for size, cases in CASES_OF_SIZE.items() for case in cases]
)
def test_tensor_parallel(size: int, case: str) -> None:
    if report := failures(size)[case]:
        pytest.fail(report, pytrace=False)
