"""Indexed datasets read back by Megatron's own reader."""

from __future__ import annotations

import numpy as np


def read_dataset(prefix: str) -> tuple[list[list[int]], list[int], str]:
    """Sequences, document borders and dtype of an indexed dataset."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix)
    sequences = [dataset[i].tolist() for i in range(len(dataset))]
    return sequences, dataset.document_indices.tolist(), str(np.dtype(dataset.index.dtype))
