"""Cuts of the vocabulary that one rank can judge alone; see distributed/communication_cases.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bgkd_megatron.vocab_shard import VocabShard


def test_one_rank_holds_all() -> None:
    shard = VocabShard.even(10, 12)
    assert (shard.start, shard.num_columns, shard.tp_size) == (0, 12, 1)
    assert shard == VocabShard(10, (12,))


@pytest.mark.parametrize(
    ("vocab_size", "widths", "message"),
    [
        (0, (10,), r"vocab_size must be at least 1 .* got vocab_size=0, widths=\(10,\)"),
        (10, (-1,), r"all widths at least 0, got vocab_size=10, widths=\(-1,\)"),
        (10, (5, 5), r"one width for each of 1 rank\(s\), got \(5, 5\)"),
        (10, (), r"one width for each of 1 rank\(s\), got \(\)"),
        (10, (9,), r"hold \[9\] columns, together fewer than the vocabulary of 10"),
        (5000, (10_000,), "at least twice the vocabulary of 5000 token ids"),
    ],
)
def test_refuses(vocab_size: int, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^VocabShard: .*{message}"):
        VocabShard(vocab_size, widths)


@pytest.mark.parametrize("wrong", [10.0, True, np.int64(10), "10", None])
def test_numbers_must_be_int(wrong: Any) -> None:
    kind = type(wrong).__name__
    for call, name in [
        (lambda: VocabShard(wrong, (10,)), "vocab_size"),
        (lambda: VocabShard(10, (wrong,)), "each of the widths"),
        (lambda: VocabShard.even(wrong, 10), "vocab_size"),
        (lambda: VocabShard.even(10, wrong), "num_columns"),
    ]:
        with pytest.raises(TypeError, match=f"^VocabShard: {name} must be an int, .*type {kind}"):
            call()


def test_widths_must_be_a_tuple() -> None:
    with pytest.raises(TypeError, match=r"widths must be a tuple of int, got \[10\]"):
        VocabShard(10, [10])


@pytest.mark.parametrize("wrong", [2, "gloo", object()])
def test_the_group_must_be_a_group(wrong: Any) -> None:
    for call in (
        lambda: VocabShard(10, (10,), wrong),
        lambda: VocabShard.even(10, 10, wrong),
        lambda: VocabShard.uneven(10, 10, wrong),
    ):
        with pytest.raises(TypeError, match=r"tp_group must be a torch.distributed.ProcessGroup"):
            call()


def test_uneven_needs_a_group() -> None:
    with pytest.raises(TypeError, match="tp_group must be a torch"):
        VocabShard.uneven(10, 10, None)
