"""Leaving out layers."""

from __future__ import annotations

import pytest
import torch

from bgkd_megatron.convert.pruning import RemainingLayers, parse_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [("14-19", range(14, 20)), ("3", [3]), ("0,2-3, 29", [0, 2, 3, 29]), ("5-6,6-7", [5, 6, 7])],
)
def test_lists_and_ranges(text: str, layers: list[int]) -> None:
    assert parse_layers(text, 30) == frozenset(layers)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((text, "must be given as") for text in ("", "a", "1-", "-3", "1:3", "1,,2")),
        ("2-1,0", "must go up, got '2-1'"),
        ("1, 30", "must be in 0-29, got '30'"),
        ("0-99999999999", "must be in 0-29, got '0-99999999999'"),
        ("0-29", "some but not all of 0-29"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_layers(text, 30)


def test_the_other_layers_move_up() -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(12)]
    weights = {name: torch.tensor(i) for i, name in enumerate(names)}
    weights["model.norm.weight"] = torch.tensor(99)

    remaining = RemainingLayers(weights, frozenset({0, 3, 4}))

    kept = [int(remaining[name]) for name in names[:9]]
    assert kept == [1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert int(remaining["model.norm.weight"]) == 99
    assert set(remaining) == {*names[:9], "model.norm.weight"}
    assert len(remaining) == 10
