"""Where the layers of a model go in a pipeline."""

from __future__ import annotations

import pytest

from bgkd_megatron.megatron.stages import stage_layers


@pytest.mark.parametrize(
    ("num_layers", "stages", "expected"),
    [(4, 2, [2, 2]), (5, 2, [3, 2]), (7, 4, [2, 2, 2, 1]), (4, 4, [1, 1, 1, 1])],
)
def test_as_even_as_can_be(num_layers: int, stages: int, expected: list[int]) -> None:
    held = stage_layers(num_layers, stages)
    assert [stage.count("decoder") for stage in held] == expected
    assert held[0][0] == "embedding"
    assert held[-1][-1] == "loss"
    assert sum(len(stage) for stage in held) == num_layers + 2


def test_as_the_user_says() -> None:
    assert stage_layers(4, 2, [1, 3], mtp_layers=1) == [
        ["embedding", "decoder"],
        ["decoder", "decoder", "decoder", "mtp", "loss"],
    ]


def test_what_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="3 layers cannot be cut into 4 stages"):
        stage_layers(3, 4)
    for wrong in ([2, 3], [4], [1, 1, 2]):
        with pytest.raises(ValueError, match=r"must be 2 numbers .*, in all 4 layers, got \["):
            stage_layers(4, 2, wrong)
