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

from bgkd_megatron.data.os_errors import naming_file

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
    ``.jsonl`` file holds one record a line (empty lines are skipped); ``.json`` is refused, for it
    may be anything; any other file is one text.  The case of a suffix does not matter.
    Raises OSError, or ValueError for a malformed record, with the line it is on.  All inputs are
    looked for before the first one is read.
    """
    for file in list(_files(inputs)):
        if _kind(file) == ".jsonl":
            yield from _read_jsonl(file)
        else:
            yield _text_document(_read_text(file), str(file))


def _files(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"input {path} does not exist")
            if not path.is_file():
                raise ValueError(f"input {path} is neither a regular file nor a directory")
            if _kind(path) == ".json":
                raise ValueError(f"input {path}: make it a .jsonl file, with one record a line")
            yield path
            continue
        files = sorted(p for p in path.rglob("*") if _kind(p) in (".txt", ".jsonl") and p.is_file())
        if not files:
            raise ValueError(f"input directory {path} holds no .txt or .jsonl file")
        yield from files


def _kind(file: Path) -> str:
    return file.suffix.lower()


def _read_text(file: Path) -> str:
    try:
        with naming_file(file):
            return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); convert it first") from error


def _read_jsonl(file: Path) -> Iterator[Document]:
    with naming_file(file), file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parse_record(line, f"{file}:{number}")


def parse_record(line: str | bytes, where: str) -> Document:
    """One line of a ``.jsonl`` file.  Raises ValueError, beginning with `where`."""
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: brackets nested too deeply for a record") from error
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
        f"got {_brief(sorted(record))}"
    )


def _text_document(text: Any, where: str) -> TextDocument:
    return TextDocument(_text(text, f"{where}: the text"), where)


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
        checked.append({"role": role, "content": _text(content, f"{place}: the content")})
    if all(message["role"] != "assistant" for message in checked):
        raise ValueError(f"{where}: no message of the assistant, so nothing to learn")
    return checked


def _text(value: Any, what: str) -> str:
    """`value`, a string that a tokenizer takes; what: "file:line: the ...", for errors."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a non-empty string, got {_brief(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may escape one half of a surrogate pair
        raise ValueError(
            f"{what} holds {value[error.start]!r} at character {error.start}, half of a surrogate "
            "pair, which is no character: remove it or write the whole pair"
        ) from error
    return value


def _brief(value: Any) -> str:
    """`value` for an error message: on one line, and short whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
