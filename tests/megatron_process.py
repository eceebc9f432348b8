"""A process with Megatron in it, for tests that need Megatron but no other ranks.

Where there is no GPU, Megatron runs only after `cpu_compat.install()`, which changes torch for the
rest of the process.  The test process itself must stay as it is.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pytest

Result = TypeVar("Result")
Call = Callable[..., Result]


def install() -> None:
    from bgkd_megatron.megatron import cpu_compat

    cpu_compat.install()


@pytest.fixture(scope="session")
def in_megatron_process() -> Iterator[Call]:
    """Call `function(*arguments)` in that process: in_megatron_process(function, *arguments)."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=install) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
