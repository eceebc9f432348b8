"""The writer: complete files or none, and nothing of others is touched."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from unittest import mock

import pytest
from dataset_files import read_dataset
from megatron_process import Call

from bgkd_megatron.data.records import Encoded

CHAT = Encoded([5, 6], [0, 1])


def write_dataset(prefix: Path, documents: list[Encoded], vocab_size: int = 300) -> int:
    """Write `documents`; returns the number of tokens."""
    from bgkd_megatron.data.indexed import IndexedWriter

    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for number, document in enumerate(documents, start=1):
            writer.add(document, f"f:{number}")
    return writer.summary.tokens


def test_large_vocabularies_are_stored_wider(tmp_path: Path, in_megatron_process: Call) -> None:
    documents = [Encoded([70_000, 1], [1, 1])]
    assert in_megatron_process(write_dataset, tmp_path / "d", documents, 151_936) == 2
    sequences, _, dtype = in_megatron_process(read_dataset, str(tmp_path / "d"))
    assert (sequences, dtype) == ([[70_000, 1]], "int32")


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ([], "no document"),
        ([CHAT, Encoded([], [])], "^f:2: a document needs tokens"),
        ([CHAT, Encoded([1, 2], [1])], "^f:2: .*got 2 and 1"),
        ([CHAT, Encoded([1, 300], [1, 1])], r"^f:2: .*in \[0, 300\), got \[1, 300\]"),
        ([Encoded([1, 2], [0, 0]), Encoded([3], [0])], "none of the 3 tokens is a target"),
    ],
)
def test_nothing_is_left_of_a_refused_dataset(
    tmp_path: Path, in_megatron_process: Call, documents: list[Encoded], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        in_megatron_process(write_dataset, tmp_path / "d", documents)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".loss_mask.bin", ".loss_mask.idx"])
def test_nothing_is_overwritten(tmp_path: Path, in_megatron_process: Call, suffix: str) -> None:
    existing = tmp_path / f"d{suffix}"
    existing.write_text("kept")
    not_reached = [Encoded([], [])]
    with pytest.raises(FileExistsError, match=rf"{existing}\): remove these files or choose"):
        in_megatron_process(write_dataset, tmp_path / "d", not_reached)
    assert [p.name for p in tmp_path.iterdir()] == [existing.name]
    assert existing.read_text() == "kept"


def write_while_another_writes(prefix: Path) -> None:
    from bgkd_megatron.data.indexed import IndexedWriter

    with IndexedWriter(prefix, vocab_size=300) as writer:
        writer.add(CHAT, "f:1")
        prefix.with_suffix(".idx").write_text("another's")


def test_what_appears_during_the_work_is_not_overwritten(
    tmp_path: Path, in_megatron_process: Call
) -> None:
    with pytest.raises(FileExistsError, match=r"d\.idx"):
        in_megatron_process(write_while_another_writes, tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d.idx"]
    assert (tmp_path / "d.idx").read_text() == "another's"


def write_unaware(prefix: Path) -> None:
    """As if another's file appeared after the writer has looked for the last time."""
    from bgkd_megatron.data.indexed import IndexedWriter

    with mock.patch.object(IndexedWriter, "_refuse_existing"):
        write_dataset(prefix, [CHAT])


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".loss_mask.bin", ".loss_mask.idx"])
def test_what_appears_at_the_last_moment_is_neither_overwritten_nor_removed(
    tmp_path: Path, in_megatron_process: Call, suffix: str
) -> None:
    existing = tmp_path / f"d{suffix}"
    existing.write_text("another's")
    with pytest.raises(FileExistsError, match=rf"{existing}\): remove these files or choose"):
        in_megatron_process(write_unaware, tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == [existing.name]
    assert existing.read_text() == "another's"


def write_without_space(prefix: Path, num_tokens: int, limit: int) -> None:
    """Files cannot grow beyond `limit` bytes: what a full disk is, with another reason."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        write_dataset(prefix, [Encoded([7] * num_tokens, [1] * num_tokens)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize(
    ("num_tokens", "limit"),
    [
        pytest.param(100_000, 4096, id="while-adding"),
        pytest.param(10, 4, id="closing-the-tokens"),
        pytest.param(10, 30, id="writing-the-index"),
    ],
)
def test_a_full_disk_is_reported_with_the_prefix(
    tmp_path: Path, in_megatron_process: Call, num_tokens: int, limit: int
) -> None:
    with pytest.raises(OSError, match=rf"File too large: '{tmp_path}/d'") as caught:
        in_megatron_process(write_without_space, tmp_path / "d", num_tokens, limit)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def write_until_the_index(prefix: Path) -> None:
    link = os.link

    def interrupted(source: Path, target: Path) -> None:
        link(source, target)
        if target == prefix.with_suffix(".idx"):
            raise KeyboardInterrupt

    with mock.patch("os.link", interrupted):
        write_dataset(prefix, [CHAT])


def test_an_interrupted_publication_is_undone(tmp_path: Path, in_megatron_process: Call) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_megatron_process(write_until_the_index, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
