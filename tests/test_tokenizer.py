"""Tokenizers of models: copied, loaded, and compared with the vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_tokenizer import byte_tokenizer, write_with_gap

from bgkd_megatron.tokenizer import (
    copy_tokenizer,
    end_of_document_id,
    load_tokenizer,
    require_rows,
    rows_needed,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_end_of_document_token() -> None:
    tokenizer = byte_tokenizer()
    assert end_of_document_id(tokenizer) == 0
    assert end_of_document_id(tokenizer, "<|im_end|>") == 2
    with pytest.raises(ValueError, match="'<eod>' is not in the vocabulary"):
        end_of_document_id(tokenizer, "<eod>")


@pytest.mark.parametrize("content", ["{", '{"version": "1.0", "model": {}}'])
def test_a_damaged_tokenizer_is_reported_on_one_line(directory: Path, content: str) -> None:
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{directory} holds no usable tokenizer: .+$"):
        load_tokenizer(directory)
    with pytest.raises(ValueError, match=r"^/models/x holds no usable tokenizer: .+$"):
        load_tokenizer(directory, origin=Path("/models/x"))


def test_only_files_belong_to_a_tokenizer(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, directory / "tokenizer")
    copy_tokenizer(directory, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tokenizer").exists()
    assert load_tokenizer(tmp_path / "copy")("a").input_ids == byte_tokenizer()("a").input_ids


def test_the_vocabulary_must_reach_the_largest_id(tmp_path: Path) -> None:
    write_with_gap(tmp_path, largest_id=500)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 259
    assert rows_needed(tokenizer) == 501
    require_rows(tokenizer, 501)
    with pytest.raises(ValueError, match=r"ids up to 500.* of 501, and the model's is only 500: "):
        require_rows(tokenizer, 500)


def test_added_tokens_need_rows_too() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    assert rows_needed(tokenizer) == 260
