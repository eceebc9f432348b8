"""The command: the files it makes, and one line about what it cannot make."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from dataset_files import read_dataset
from megatron_process import Call
from tiny_tokenizer import byte_tokenizer, write_with_gap

from bgkd_megatron.data.documents import Document, TextDocument
from bgkd_megatron.data.prepare import main


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


@pytest.mark.parametrize(
    "line",
    ['{"text": ""}', r'{"text": "\ud800"}', "[" * 100_000],
    ids=["empty", "surrogate", "deep"],
)
def test_nothing_is_written_when_a_line_is_wrong(
    tmp_path: Path, tokenizer_dir: Path, in_megatron_process: Call, line: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    out = tmp_path / "out"
    arguments = command(tokenizer_dir, tmp_path / "a.jsonl", out / "text")
    status, errors = in_megatron_process(main_with_errors, arguments)
    assert status == 1
    assert errors.startswith(f"error: {tmp_path}/a.jsonl:2: ")
    assert errors.count("\n") == 1
    assert list(out.iterdir()) == []


def test_a_failing_command_prints_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "text.idx").write_text("kept")
    arguments = command(tokenizer_dir, tmp_path / "nowhere", tmp_path / "text")
    process = subprocess.run(
        [sys.executable, "-m", "bgkd_megatron.data.prepare", *arguments],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == (
        f"error: output {tmp_path}/text already exists ({tmp_path}/text.idx): "
        "remove these files or choose another prefix\n"
    )


def main_with_signal(arguments: list[str], prefix: Path, number: int) -> tuple[int, str]:
    """`main_with_errors`, and the signal comes in the middle of the work."""

    def documents(inputs: Iterable[Path]) -> Iterator[Document]:
        yield TextDocument("first", "f:1")
        assert list(prefix.parent.iterdir()), "the work has not begun"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
        os.kill(os.getpid(), number)
        yield TextDocument("second", "f:2")

    with mock.patch("bgkd_megatron.data.prepare.read_documents", documents):
        try:
            return main_with_errors(arguments)
        except SystemExit as error:
            return int(error.code or 0), ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(
    tmp_path: Path, tokenizer_dir: Path, in_megatron_process: Call, number: signal.Signals
) -> None:
    prefix = tmp_path / "out" / "text"
    arguments = command(tokenizer_dir, tmp_path / "none", prefix)
    outcome = in_megatron_process(main_with_signal, arguments, prefix, number)
    assert outcome == (128 + number, "error: interrupted\n" if number == signal.SIGINT else "")
    assert list(prefix.parent.iterdir()) == []


def test_a_missing_tokenizer_is_reported(tmp_path: Path, in_megatron_process: Call) -> None:
    arguments = command(tmp_path / "none", tmp_path, tmp_path / "x")
    status, errors = in_megatron_process(main_with_errors, arguments)
    assert status == 1
    assert errors == f"error: tokenizer directory {tmp_path}/none does not exist\n"


def test_ids_with_a_gap_are_all_in_the_vocabulary(
    tmp_path: Path, in_megatron_process: Call
) -> None:
    write_with_gap(tmp_path / "tokenizer", largest_id=500)
    (tmp_path / "a.txt").write_text("í")  # its second byte, 0xAD, is the last token
    arguments = command(tmp_path / "tokenizer", tmp_path / "a.txt", tmp_path / "text")
    assert in_megatron_process(main, arguments) == 0
    (ids,), _, _ = in_megatron_process(read_dataset, str(tmp_path / "text"))
    assert max(ids) == 500
    assert json.loads((tmp_path / "text.json").read_text())["vocab_size"] == 501
