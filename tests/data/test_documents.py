"""What is read from files, and that whatever is wrong is reported with its place."""

from __future__ import annotations

import json
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
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "first", "id": 7}\n\n{"text": "x"}\n')
    (tmp_path / "texts" / "ignored.py").write_text("not read from a directory")
    (tmp_path / "named.py").write_text("read when named")

    documents = list(read_documents([tmp_path / "named.py", tmp_path / "texts"]))

    assert [d.text for d in documents if isinstance(d, TextDocument)] == [
        "read when named", "first", "x", "second"
    ]  # fmt: skip
    assert documents[2].where.endswith("a.jsonl:3"), "empty lines must count as lines"


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
        ("[1]", "expected a JSON object, got list"),
        ('{"txt": "a"}', r"expected a key .* got \['txt'\]"),
        ('{"prompt": "a"}', "expected a key"),
        ('{"text": " "}', "non-empty string"),
        ('{"text": 3}', "non-empty string, got 3"),
        ('{"messages": []}', "non-empty list"),
        ('{"messages": "hi"}', "non-empty list"),
        (_chat("hi"), "message 0 must be"),
        (_chat({"role": "bot", "content": "hi"}), "role must be one of .* got 'bot'"),
        (_chat(USER, {"role": "assistant"}), "message 1: content must be non-empty text, got None"),
        (_chat(USER, {"role": "assistant", "content": ""}), "message 1: content"),
        (_chat(USER), "no message of the assistant"),
        ('{"prompt": "", "completion": "4"}', "message 0: content"),
    ],
)
def test_malformed_records_are_refused(line: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^data.jsonl:12: .*{problem}"):
        parse_record(line, "data.jsonl:12")


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(ValueError, match="role must be") as caught:
        parse_record(_chat({"role": "x" * 5000, "content": "hi"}), "f:1")
    assert len(str(caught.value)) < 200


def test_inputs_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(ValueError, match=r"holds no \.txt or \.jsonl"):
        list(read_documents([tmp_path]))
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin1\.txt: not UTF-8"):
        list(read_documents([tmp_path / "latin1.txt"]))
