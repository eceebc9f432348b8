"""Writing Megatron's indexed dataset and, where some tokens are no targets, a loss mask beside it.

    PREFIX.bin, PREFIX.idx                        token ids, one sequence a document
    PREFIX.loss_mask.bin, PREFIX.loss_mask.idx    uint8 0/1 of the same lengths (chat only)
    PREFIX.json                                   `Summary`

On a machine without a GPU call bgkd_megatron.megatron.cpu_compat.install() before importing this.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from bgkd_megatron.data.records import Encoded, Summary

MASK_SUFFIX = ".loss_mask"


class IndexedWriter:
    """Writes one dataset; use as a context manager and call `add` for each document.

    The files appear under their final names only when the block ends without an exception, the
    index last: a dataset with an index is complete.  `summary` counts what was added.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self.prefix = prefix
        self.summary = Summary(vocab_size)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(dir=prefix.parent, prefix=f".{prefix.name}-")
        self._tokens = self._builder("", DType.optimal_dtype(vocab_size))
        self._mask = self._builder(MASK_SUFFIX, np.uint8)

    def add(self, document: Encoded) -> None:
        """Append one document.  Raises ValueError for an id outside the vocabulary."""
        ids, loss_mask = document
        if min(ids) < 0 or max(ids) >= self.summary.vocab_size:
            raise ValueError(
                f"token ids must be in [0, {self.summary.vocab_size}), got [{min(ids)}, {max(ids)}]"
            )
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
            self._tokens.finalize(str(self._temporary(".idx")))
            self._mask.finalize(str(self._temporary(MASK_SUFFIX + ".idx")))
            if exc_type is None:
                self._publish()
        finally:
            self._scratch.cleanup()

    def _publish(self) -> None:
        if not self.summary.documents:
            raise ValueError("no document was given, so there is no dataset to write")
        self._temporary(".json").write_text(json.dumps(asdict(self.summary), indent=2) + "\n")
        # The old index goes first and the new one comes last: at no time does an index lie beside
        # files that it does not describe.
        self._final(".idx").unlink(missing_ok=True)
        for kind in (".idx", ".bin"):
            self._final(MASK_SUFFIX + kind).unlink(missing_ok=True)
        suffixes = [".json", ".bin", ".idx"]
        if self.summary.loss_tokens < self.summary.tokens:
            suffixes = [MASK_SUFFIX + ".bin", MASK_SUFFIX + ".idx", *suffixes]
        for suffix in suffixes:
            os.replace(self._temporary(suffix), self._final(suffix))

    def _builder(self, suffix: str, dtype: type[np.number]) -> IndexedDatasetBuilder:
        return IndexedDatasetBuilder(str(self._temporary(suffix + ".bin")), dtype=dtype)

    def _temporary(self, suffix: str) -> Path:
        return Path(self._scratch.name) / f"dataset{suffix}"

    def _final(self, suffix: str) -> Path:
        return self.prefix.with_name(self.prefix.name + suffix)
