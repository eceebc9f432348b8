"""The architecture of a model: what is refused, what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_files import STUDENT

from bgkd_megatron.megatron.model_config import ModelConfig


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_query_groups": 4}, "must be a multiple of num_query_groups"),
        ({"hidden_size": 50}, "set head_dim"),
        ({"vocab_size": 0}, "greater than 0"),
        ({"layers": 3}, "Extra inputs"),
        ({"num_layers": True}, "must be a number, got the boolean true"),
    ],
)
def test_impossible_models(change: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ModelConfig.model_validate(STUDENT.model_dump() | change)


def test_mistakes_in_a_file_are_on_one_line(tmp_path: Path) -> None:
    text = json.dumps(STUDENT.model_dump() | {"layers": 3, "vocab_size": -1})
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json cannot be used: ") as error:
        ModelConfig.read(tmp_path)
    mistakes = "vocab_size: Input should be greater than 0, got -1; layers: unknown key"
    assert str(error.value).endswith(mistakes)


def test_padded_vocabulary() -> None:
    assert [STUDENT.padded_vocab_size(tp) for tp in (1, 2, 3)] == [384, 512, 384]
    assert STUDENT.kv_channels == 8
    assert STUDENT.model_copy(update={"head_dim": 16}).kv_channels == 16
