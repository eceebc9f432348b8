"""What is read from files, and that whatever is wrong is reported with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bgkd_megatron.data.documents import (
    ChatDocument,
    TextDocument,
    parse_record,
    read_documents,
)


def test_files_and_directories_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (tmp_path / "texts" / "a.JSONL").write_text('{"text": "first", "id": 7}\n\n{"text": "x"}\n')
    (tmp_path / "texts" / "ignored.py").write_text("not read from a directory")
    (tmp_path / "named.py").write_text("read when named")

    documents = list(read_documents([tmp_path / "named.py", tmp_path / "texts"]))

    assert [d.text for d in documents if isinstance(d, TextDocument)] == [
        "read when named", "first", "x", "second"
    ]  # fmt: skip
    assert documents[2].where.endswith("a.JSONL:3"), "empty lines must count as lines"


def test_prompt_and_completion_are_a_chat() -> None:
    document = parse_record('{"prompt": "2+2?", "completion": "4"}', "f:1")
    assert document == ChatDocument(
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "f:1"
    )


def _chat(*messages: object) -> str:
    return json.dumps({"messages": messages})


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut', "not valid JSON"),
        (b'{"text": "\xff"}', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        (r'{"text": "ab\ud800"}', r"the text holds '\\ud800' at character 2, half of a surrogate"),
        (b'{"text": "\xed\xa0\x80"}', "half of a surrogate"),
        (r'{"prompt": "a", "completion": "\udc00"}', "message 1: the content holds .* surrogate"),
        ("[1]", "expected a JSON object, got list"),
        ('{"txt": "a"}', r"expected a key .* got \['txt'\]"),
        ('{"prompt": "a"}', "expected a key"),
        ('{"text": " "}', "non-empty string"),
        ('{"text": 3}', "non-empty string, got 3"),
        ('{"messages": []}', "non-empty list"),
        ('{"messages": "hi"}', "non-empty list"),
        (_chat("hi"), "message 0 must be"),
        (_chat({"role": "bot", "content": "hi"}), "role must be one of .* got 'bot'"),
        (_chat(USER, {"role": "assistant"}), "message 1: the content must be a .* got None"),
        (_chat(USER, {"role": "assistant", "content": ""}), "message 1: the content"),
        (_chat(USER), "no message of the assistant"),
        ('{"prompt": "", "completion": "4"}', "message 0: the content"),
    ],
)
def test_malformed_records_are_refused(line: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^data.jsonl:12: .*{problem}"):
        parse_record(line, "data.jsonl:12")


@pytest.mark.parametrize(
    "line", [_chat({"role": "x" * 5000, "content": "hi"}), json.dumps({"x" * 5000: 1})]
)
def test_long_values_are_shortened_in_messages(line: str) -> None:
    with pytest.raises(ValueError, match=r"role must be|expected a key") as caught:
        parse_record(line, "f:1")
    assert len(str(caught.value)) < 200


def test_inputs_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(ValueError, match=r"holds no \.txt or \.jsonl"):
        list(read_documents([tmp_path]))
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin1\.txt: not UTF-8"):
        list(read_documents([tmp_path / "latin1.txt"]))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither a regular file nor a directory"):
        list(read_documents([tmp_path / "pipe"]))


@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
def test_json_that_is_not_lines_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"text": "a"}]')
    with pytest.raises(
        ValueError, match=rf"{name}: make it a \.jsonl file, with one record a line"
    ):
        list(read_documents([tmp_path / name]))


def test_inputs_are_looked_for_before_the_first_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("readable")
    with pytest.raises(FileNotFoundError):
        next(read_documents([tmp_path / "a.txt", tmp_path / "nowhere"]))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file that cannot be read")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(OSError, match=r"Input/output error: '/proc/self/mem'"):
        next(read_documents([Path("/proc/self/mem")]))
