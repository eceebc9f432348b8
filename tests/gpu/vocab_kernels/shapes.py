"""Row lengths and layouts at which loops, tails and alignment change."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import LogitType
from .problem import WHOLE_ROWS, Layout


@dataclass(frozen=True)
class Shape:
    columns: int
    layout: Layout = WHOLE_ROWS


def shapes(dtype: LogitType) -> dict[str, Shape]:
    """A thread takes two vectors of each tensor at a time: a round of 32 threads is 64 vectors."""
    vector = dtype.vector
    step = 64 * vector
    aligned = -(2 * step + 3) % vector
    gaps = Layout(slack=(aligned, aligned + vector, aligned))
    return {
        "no column": Shape(0),
        "one column": Shape(1),
        "part of a vector": Shape(vector - 1),
        # less than a warp's first vectors: most lanes have no column
        "vectors and a tail": Shape(3 * vector + 1),
        # no tail: the loop without conditions alone, and where the compiler made two rounds of one
        "whole rounds": Shape(3 * step),
        # elements, but no absent ones, which would have sums formed once more
        "misaligned whole rounds": Shape(2 * step, Layout(slack=(1, 3, 2), start=(1, 2, 3))),
        # one element behind them
        "one more": Shape(2 * step + 1, Layout(slack=((vector - 1),) * 3)),
        # aligned rows with a gap between them; the tail ends within a vector
        "rounds and a tail": Shape(2 * step + 3, gaps),
        # ... in the second vector of a thread
        "rounds and more than half a round": Shape(2 * step + 32 * vector + 3, gaps),
        # every row begins elsewhere, and the two tensors never at the same place
        "misaligned": Shape(2 * step + 5, Layout(slack=(1, 3, 2), start=(1, 2, 3))),
        # only one tensor may be read by vectors
        "teacher misaligned": Shape(step + vector, Layout(start=(0, 1, 0))),
        "student misaligned": Shape(step + vector, Layout(start=(vector - 1, 0, 1))),
        # a number of warps that is no power of two; the last part is short
        "three warps, three parts": Shape(6 * step + 7, Layout(96, 3, (1, 1, 1))),
        # as the plans for long rows have it, more than one round
        "eight warps": Shape(8 * step + 9, Layout(256)),
    }


def elements(dtype: LogitType) -> list[int]:
    """The columns of the first thread's two vectors, in a block of one warp: each has instructions
    of its own."""
    return [start + k for start in (0, 32 * dtype.vector) for k in range(dtype.vector)]


def ends(dtype: LogitType) -> list[Shape]:
    """A row ends behind every one of these, or where the second vector would begin."""
    misaligned = Layout(slack=(1, 3, 2), start=(1, 2, 3))
    lengths = [column + 1 for column in elements(dtype)]
    return [Shape(length, misaligned) for length in (*lengths, 32 * dtype.vector)]


# Where instances can differ: long loops, parts and their merge, and rows without alignment.
TYPICAL = ("rounds and a tail", "misaligned", "three warps, three parts")
