"""The files on disk, read back by Megatron's own reader."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from megatron_process import Call
from tiny_tokenizer import byte_tokenizer

from bgkd_megatron.data.encode import end_of_document_id
from bgkd_megatron.data.prepare import main
from bgkd_megatron.data.records import Encoded


def read_dataset(prefix: str) -> tuple[list[list[int]], list[int], str]:
    """Sequences, document borders and dtype of an indexed dataset."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix)
    sequences = [dataset[i].tolist() for i in range(len(dataset))]
    return sequences, dataset.document_indices.tolist(), str(np.dtype(dataset.index.dtype))


def write_dataset(prefix: Path, documents: list[Encoded], vocab_size: int = 300) -> int:
    """Write `documents`; returns the number of tokens."""
    from bgkd_megatron.data.indexed import IndexedWriter

    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return writer.summary.tokens


def main_with_errors(arguments: list[str]) -> tuple[int, str]:
    """The command's exit status and what it wrote to stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return main(arguments), errors.getvalue()


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def command(tokenizer_dir: Path, source: Path, prefix: Path) -> list[str]:
    return ["--tokenizer", str(tokenizer_dir), "--input", str(source), "--output", str(prefix)]


def test_text(tmp_path: Path, tokenizer_dir: Path, in_megatron_process: Call) -> None:
    texts = [f"document {i}: h\u00e9llo" for i in range(300)]  # more than one batch
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    prefix = tmp_path / "new" / "folder" / "text"

    assert in_megatron_process(main, command(tokenizer_dir, tmp_path / "a.jsonl", prefix)) == 0

    sequences, borders, dtype = in_megatron_process(read_dataset, str(prefix))
    tokenizer = byte_tokenizer()
    assert sequences == [[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in texts]
    assert borders == list(range(301))
    assert dtype == "uint16"
    assert {p.name for p in prefix.parent.iterdir()} == {"text.bin", "text.idx", "text.json"}


def test_chat_has_a_loss_mask_of_the_same_lengths(
    tmp_path: Path, tokenizer_dir: Path, in_megatron_process: Call
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "2+2?", "completion": "4"}\n{"text": "plain text may be mixed in"}\n'
    )
    prefix = tmp_path / "chat"
    assert in_megatron_process(main, command(tokenizer_dir, tmp_path / "a.jsonl", prefix)) == 0

    tokens, _, _ = in_megatron_process(read_dataset, str(prefix))
    masks, _, dtype = in_megatron_process(read_dataset, f"{prefix}.loss_mask")
    assert dtype == "uint8"
    assert [len(mask) for mask in masks] == [len(ids) for ids in tokens]
    answer = [id for id, learned in zip(tokens[0], masks[0], strict=True) if learned]
    assert byte_tokenizer().decode(answer) == "4<|im_end|>"
    assert set(masks[1]) == {1}
    num_tokens, num_targets = sum(map(len, tokens)), sum(map(sum, masks))
    assert json.loads((tmp_path / "chat.json").read_text()) == {
        "vocab_size": 259, "documents": 2, "tokens": num_tokens, "loss_tokens": num_targets
    }  # fmt: skip


def test_nothing_is_written_when_a_line_is_wrong(
    tmp_path: Path,
    tokenizer_dir: Path,
    in_megatron_process: Call,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    out = tmp_path / "out"
    arguments = command(tokenizer_dir, tmp_path / "a.jsonl", out / "text")
    status, errors = in_megatron_process(main_with_errors, arguments)
    assert status == 1
    assert errors.startswith(f"error: {tmp_path}/a.jsonl:2: ")
    assert list(out.iterdir()) == []


def test_a_failed_run_leaves_the_old_dataset(tmp_path: Path, in_megatron_process: Call) -> None:
    prefix = tmp_path / "d"
    in_megatron_process(write_dataset, prefix, [Encoded([5, 6], [0, 1])])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"must be in \[0, 300\), got \[1, 300\]"):
        in_megatron_process(write_dataset, prefix, [Encoded([7], [1]), Encoded([1, 300], [1, 1])])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_loss_mask_of_an_older_dataset_does_not_stay(
    tmp_path: Path, in_megatron_process: Call
) -> None:
    in_megatron_process(write_dataset, tmp_path / "d", [Encoded([5, 6], [0, 1])])
    assert (tmp_path / "d.loss_mask.idx").exists()
    in_megatron_process(write_dataset, tmp_path / "d", [Encoded([5, 6], [1, 1])])
    assert {p.name for p in tmp_path.iterdir()} == {"d.bin", "d.idx", "d.json"}


def test_large_vocabularies_are_stored_wider(tmp_path: Path, in_megatron_process: Call) -> None:
    documents = [Encoded([70_000, 1], [1, 1])]
    assert in_megatron_process(write_dataset, tmp_path / "d", documents, 151_936) == 2
    sequences, _, dtype = in_megatron_process(read_dataset, str(tmp_path / "d"))
    assert (sequences, dtype) == ([[70_000, 1]], "int32")


def test_an_empty_dataset_is_refused(tmp_path: Path, in_megatron_process: Call) -> None:
    with pytest.raises(ValueError, match="no document"):
        in_megatron_process(write_dataset, tmp_path / "d", [])


def test_end_of_document_token() -> None:
    tokenizer = byte_tokenizer()
    assert end_of_document_id(tokenizer) == 0
    assert end_of_document_id(tokenizer, "<|im_end|>") == 2
    with pytest.raises(ValueError, match="'<eod>' is not in the vocabulary"):
        end_of_document_id(tokenizer, "<eod>")


def test_a_missing_tokenizer_is_reported(tmp_path: Path, in_megatron_process: Call) -> None:
    arguments = command(tmp_path / "none", tmp_path, tmp_path / "x")
    status, errors = in_megatron_process(main_with_errors, arguments)
    assert status == 1
    assert errors == f"error: tokenizer directory {tmp_path}/none does not exist\n"
