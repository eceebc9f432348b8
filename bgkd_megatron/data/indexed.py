"""Writing Megatron's indexed dataset and, where some tokens are no targets, a loss mask beside it.

    PREFIX.bin, PREFIX.idx                        token ids, one sequence a document
    PREFIX.loss_mask.bin, PREFIX.loss_mask.idx    uint8 0/1 of the same lengths (chat only)
    PREFIX.json                                   `Summary`

Until they are complete they are in a folder .PREFIX-XXXXXXXX beside them.  Only a process that is
killed outright (SIGKILL, power failure) leaves it behind, or files without PREFIX.idx: delete them
when no process writes PREFIX.  The file system must have hard links.

On a machine without a GPU call bgkd_megatron.megatron.cpu_compat.install() before importing this.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from bgkd_megatron.data.os_errors import naming_file
from bgkd_megatron.data.records import Encoded, Summary
from bgkd_megatron.megatron.dataset import LOSS_MASK_SUFFIX

# In the order in which they appear: a dataset with an index is complete.
MASK_FILES = (f"{LOSS_MASK_SUFFIX}.bin", f"{LOSS_MASK_SUFFIX}.idx")
FILES = (".json", ".bin", ".idx")


class IndexedWriter:
    """Writes one dataset; use as a context manager and call `add` for each document.

    The files appear under their final names only when the block ends without an exception, the
    index last: a dataset with an index is complete.  `summary` counts what was added.
    Raises FileExistsError, at the start and again at the end, when one of the files is already
    there: nothing is ever overwritten or removed.  Raises ValueError when there is nothing to
    learn.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self.prefix = prefix
        self.summary = Summary(vocab_size)
        self._refuse_existing()
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(dir=prefix.parent, prefix=f".{prefix.name}-")
        self._tokens = self._builder("", DType.optimal_dtype(vocab_size))
        self._mask = self._builder(LOSS_MASK_SUFFIX, np.uint8)

    def add(self, document: Encoded, where: str) -> None:
        """Append one document; where: its place, with which errors begin.

        Raises ValueError for a document without tokens, a loss mask of another length, or an id
        outside the vocabulary.
        """
        ids, loss_mask = document
        if not ids or len(loss_mask) != len(ids):
            raise ValueError(
                f"{where}: a document needs tokens and as many loss mask entries, got "
                f"{len(ids)} and {len(loss_mask)}"
            )
        if min(ids) < 0 or max(ids) >= self.summary.vocab_size:
            raise ValueError(
                f"{where}: token ids must be in [0, {self.summary.vocab_size}), got "
                f"[{min(ids)}, {max(ids)}]"
            )
        with naming_file(self.prefix):
            self._tokens.add_document(ids, [len(ids)])
            self._mask.add_document(loss_mask, [len(ids)])
        self.summary.documents += 1
        self.summary.tokens += len(ids)
        self.summary.loss_tokens += sum(loss_mask)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                with naming_file(self.prefix):
                    self._publish()
        finally:
            for builder in (self._tokens, self._mask):
                # On a full disk closing fails once more, for the data still buffered.
                with contextlib.suppress(OSError):
                    builder.data_file.close()
            self._scratch.cleanup()

    def _publish(self) -> None:
        if not self.summary.documents:
            raise ValueError("no document was given, so there is no dataset to write")
        if not self.summary.loss_tokens:
            raise ValueError(
                f"none of the {self.summary.tokens} tokens is a target (every loss mask is 0), so "
                "there is nothing to learn from this dataset"
            )
        self._tokens.finalize(str(self._temporary(".idx")))
        self._mask.finalize(str(self._temporary(LOSS_MASK_SUFFIX + ".idx")))
        self._temporary(".json").write_text(json.dumps(asdict(self.summary), indent=2) + "\n")
        self._refuse_existing()
        has_mask = self.summary.loss_tokens < self.summary.tokens
        with contextlib.ExitStack() as undo:
            for suffix in (*MASK_FILES, *FILES) if has_mask else FILES:
                # Before the link, for a signal may come between the two.
                undo.callback(self._withdraw, suffix)
                self._link(suffix)
            undo.pop_all()  # from here on the dataset stays

    def _link(self, suffix: str) -> None:
        """Unlike a rename, it fails when another process has taken the name since the check."""
        try:
            os.link(self._temporary(suffix), self._final(suffix))
        except FileExistsError as error:
            raise self._already_there([self._final(suffix)]) from error

    def _withdraw(self, suffix: str) -> None:
        """Remove the final name if it is of our own file."""
        with contextlib.suppress(FileNotFoundError):
            if self._final(suffix).samefile(self._temporary(suffix)):
                self._final(suffix).unlink()

    def _refuse_existing(self) -> None:
        files = [self._final(suffix) for suffix in (*MASK_FILES, *FILES)]
        if existing := [file for file in files if os.path.lexists(file)]:
            raise self._already_there(existing)

    def _already_there(self, existing: list[Path]) -> FileExistsError:
        files = ", ".join(map(str, existing))
        return FileExistsError(
            f"output {self.prefix} already exists ({files}): remove these files or choose another "
            "prefix"
        )

    def _builder(self, suffix: str, dtype: type[np.number]) -> IndexedDatasetBuilder:
        return IndexedDatasetBuilder(str(self._temporary(suffix + ".bin")), dtype=dtype)

    def _temporary(self, suffix: str) -> Path:
        return Path(self._scratch.name) / f"dataset{suffix}"

    def _final(self, suffix: str) -> Path:
        return self.prefix.with_name(self.prefix.name + suffix)
