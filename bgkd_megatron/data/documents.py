"""Reading documents, one at a time, from text files, directories and JSON lines.

A record of a ``.jsonl`` file is one of
    {"text": str}                                      plain text, every token is learned
    {"messages": [{"role": str, "content": str}, ...]}  a chat: only the assistant is learned
    {"prompt": str, "completion": str}                 a chat of one question and one answer
Other keys of a record are ignored.  Every error names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("system", "user", "assistant")

Message = dict[str, str]


@dataclass(frozen=True)
class TextDocument:
    """text: the whole document.  where: "file" or "file:line", for error messages."""

    text: str
    where: str


@dataclass(frozen=True)
class ChatDocument:
    """messages: [{"role", "content"}], with at least one of the assistant.  where: "file:line"."""

    messages: list[Message]
    where: str


Document = TextDocument | ChatDocument


def read_documents(inputs: Iterable[Path]) -> Iterator[Document]:
    """The documents of all inputs, in order and streamed.

    A directory stands for its ``.txt`` and ``.jsonl`` files, recursively, sorted by path.  A
    ``.jsonl`` file holds one record a line (empty lines are skipped); any other file is one text.
    Raises FileNotFoundError, or ValueError for a malformed record, with the line it is on.
    """
    for file in _files(inputs):
        if file.suffix == ".jsonl":
            yield from _read_jsonl(file)
        else:
            yield _text_document(_read_text(file), str(file))


def _files(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if not path.is_dir():
            if not path.is_file():
                raise FileNotFoundError(f"input {path} does not exist")
            yield path
            continue
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl") and p.is_file())
        if not files:
            raise ValueError(f"input directory {path} holds no .txt or .jsonl file")
        yield from files


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); convert it first") from error


def _read_jsonl(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parse_record(line, f"{file}:{number}")


def parse_record(line: str | bytes, where: str) -> Document:
    """One line of a ``.jsonl`` file.  Raises ValueError, beginning with `where`."""
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if "text" in record:
        return _text_document(record["text"], where)
    if "messages" in record:
        return ChatDocument(_messages(record["messages"], where), where)
    if "prompt" in record and "completion" in record:
        turns = [("user", record["prompt"]), ("assistant", record["completion"])]
        messages = [{"role": role, "content": content} for role, content in turns]
        return ChatDocument(_messages(messages, where), where)
    raise ValueError(
        f'{where}: expected a key "text", "messages", or both "prompt" and "completion", '
        f"got {sorted(record)}"
    )


def _text_document(text: Any, where: str) -> TextDocument:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: the text must be a non-empty string, got {_brief(text)}")
    return TextDocument(text, where)


def _messages(messages: Any, where: str) -> list[Message]:
    """Checked copies with only the keys that a chat template needs."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{where}: "messages" must be a non-empty list, got {_brief(messages)}')
    checked = []
    for index, message in enumerate(messages):
        place = f"{where}: message {index}"
        if not isinstance(message, dict):
            raise ValueError(f'{place} must be {{"role", "content"}}, got {_brief(message)}')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"{place}: role must be one of {', '.join(ROLES)}, got {_brief(role)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{place}: content must be non-empty text, got {_brief(content)}")
        checked.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in checked):
        raise ValueError(f"{where}: no message of the assistant, so nothing to learn")
    return checked


def _brief(value: Any) -> str:
    """`value` for an error message: on one line, and short whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
