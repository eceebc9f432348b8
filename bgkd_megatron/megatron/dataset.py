"""Batches from Megatron's indexed datasets, in an order that a restart continues.

A dataset is PREFIX.bin and PREFIX.idx.  Where PREFIX.loss_mask.bin and .idx lie beside them, with
a 0 or 1 for every token, tokens with 0 are read but not learned (the prompt of a chat).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch import Tensor

from bgkd_megatron import rank_check
from bgkd_megatron.megatron import parallel
from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.loss import IGNORE_INDEX
from bgkd_megatron.schedule import Microbatch
from bgkd_megatron.sequence_layout import piece_of
from bgkd_megatron.settings import explain

__all__ = ["LOSS_MASK_SUFFIX", "DatasetFactory", "SampleDataset", "global_batch"]

LOSS_MASK_SUFFIX = ".loss_mask"
"""The loss mask of the dataset PREFIX is the dataset PREFIX + LOSS_MASK_SUFFIX."""


class SampleDataset(Protocol):
    """Samples of one length; index None is a sample in which nothing is to be learned."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | None) -> dict[str, Tensor]: ...


class MaskedGPTDataset(GPTDataset):
    """Megatron's GPTDataset, with the loss mask of the sidecar folded into the labels."""

    def __init__(self, indexed_dataset: IndexedDataset, dataset_path: str, *args: Any) -> None:
        super().__init__(indexed_dataset, dataset_path, *args)
        # Megatron 0.19 writes the padding of the first sample that is read into the loss mask it
        # keeps for all samples; if that sample is the short last one, all others lose labels.
        self.masks_and_position_ids_are_cacheable = False
        self._mask_view: MaskedGPTDataset | None = None
        if Path(f"{dataset_path}{LOSS_MASK_SUFFIX}.idx").is_file():
            mask = IndexedDataset(dataset_path + LOSS_MASK_SUFFIX)
            if not np.array_equal(mask.sequence_lengths, indexed_dataset.sequence_lengths):
                raise ConfigError(
                    f"{dataset_path}{LOSS_MASK_SUFFIX} does not have the sequence lengths of "
                    f"{dataset_path}: prepare the dataset again"
                )
            # The same samples, read from the mask: Megatron's index logic serves both.
            self._mask_view = copy.copy(self)
            self._mask_view.dataset = mask

    def __getitem__(self, index: int | None) -> dict[str, Tensor]:
        """tokens, labels, position_ids, each [seq_length] int64.

        Raises ConfigError for a token outside the vocabulary.
        """
        sample = super().__getitem__(index)
        tokens, labels = sample["tokens"], sample["labels"]
        largest = max(int(tokens.max()), int(labels.max()))
        if largest >= self.config.tokenizer.vocab_size:
            raise ConfigError(
                f"{self.dataset_path} holds token id {largest}, but the model's vocabulary has "
                f"{self.config.tokenizer.vocab_size} tokens: prepare the dataset with the model's "
                "tokenizer"
            )
        keep = sample["loss_mask"] > 0
        if self._mask_view is not None:
            mask, _, _ = self._mask_view._query_document_sample_shuffle_indices(index or 0)
            keep &= torch.from_numpy(mask[1:] == 1)
        return {
            "tokens": tokens,
            "labels": labels.masked_fill(~keep, IGNORE_INDEX),
            "position_ids": sample["position_ids"],
        }


class _Builder(BlendedMegatronDatasetBuilder):
    """Megatron's, but when one rank cannot build a dataset all raise; there the others would wait.

    Rank 0 comes first: it writes the index of samples that the others read.
    """

    def _build_megatron_datasets_parallel(
        self, prefixes: list[str], split: list[Any], sizes_per_dataset: list[list[int]]
    ) -> list[list[SampleDataset]]:
        """The datasets by split and prefix; one after the other, for each is a collective."""
        datasets = [
            self._build_megatron_dataset_splits(prefix, split, sizes)
            for prefix, sizes in zip(prefixes, sizes_per_dataset, strict=True)
        ]
        return [list(of_split) for of_split in zip(*datasets, strict=True)]

    @staticmethod
    def build_generic_dataset(
        cls: Callable[..., SampleDataset],
        is_built_on_rank: Callable[[], bool],
        synchronize_ranks: bool,
        *args: Any,
    ) -> SampleDataset:
        """cls(*args) on all ranks.  Collective; raises on all or none."""

        def in_turn(mine: bool) -> SampleDataset | None:
            return rank_check.agreed(
                "building a dataset",
                lambda: cls(*args) if mine else None,
                lambda _: {},
                dist.group.WORLD,
            )

        first = in_turn(dist.get_rank() == 0)
        later = in_turn(dist.get_rank() != 0)
        return cast(SampleDataset, later if first is None else first)


@dataclass(frozen=True)
class _Vocabulary:
    """The little that GPTDataset asks of a tokenizer when the text is tokenized already."""

    vocab_size: int
    versions: list[str]
    eod: None = None  # documents are joined without resetting positions or masks

    @property
    def unique_identifiers(self) -> dict[str, object]:
        """Part of the name of Megatron's index of samples, which else would outlive the data."""
        return {"vocab_size": self.vocab_size, "versions": self.versions}


@dataclass(frozen=True)
class DatasetFactory:
    """Builds datasets of seq_length tokens; call it on all ranks in the same order.

    end_of_document: token id after which another document begins; without it samples do not say
        where documents end.
    index_dir: where Megatron keeps its index of samples; rank 0 writes it, all ranks read it.
    """

    seq_length: int
    seed: int
    vocab_size: int
    index_dir: Path
    end_of_document: int | None = None

    def train(
        self, prefixes: Sequence[str], weights: Sequence[float] | None, num_samples: int
    ) -> SampleDataset:
        """At least num_samples samples, over as many epochs as it takes.

        weights: share of each dataset; without them every token has the same share.
        """
        if weights is None and len(prefixes) > 1:
            with _readable(prefixes, self.index_dir):
                weights = [_num_tokens(prefix) for prefix in prefixes]
        return self._build(Split.train, prefixes, weights, num_samples)

    def valid(self, prefix: str) -> SampleDataset:
        """All of one dataset, once; the last sample is padded."""
        return self._build(Split.valid, [prefix], None, None)

    def _build(
        self,
        split: Split,
        prefixes: Sequence[str],
        weights: Sequence[float] | None,
        num_samples: int | None,
    ) -> SampleDataset:
        blends: list[Any] = [None] * len(Split)
        blends[split.value] = (list(prefixes), list(weights) if weights else None)
        sizes: list[Any] = [0] * len(Split)
        sizes[split.value] = num_samples
        config = GPTDatasetConfig(
            random_seed=self.seed,
            sequence_length=self.seq_length,
            blend_per_split=blends,
            path_to_cache=str(self.index_dir),
            tokenizer=_Vocabulary(self.vocab_size, [_version(prefix) for prefix in prefixes]),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            drop_last_partial_validation_sequence=False,
        )
        builder = _Builder(MaskedGPTDataset, sizes, lambda: True, config)
        with _readable(prefixes, self.index_dir):
            dataset = _CheckedDataset(
                builder.build()[split.value], prefixes, self.index_dir, self.end_of_document
            )
        if len(dataset) == 0:
            raise ConfigError(f"{', '.join(prefixes)} holds fewer than two tokens")
        return dataset


@dataclass(frozen=True)
class _CheckedDataset:
    """A dataset of Megatron, which maps its files into memory and believes what they say."""

    dataset: SampleDataset
    prefixes: Sequence[str]
    index_dir: Path
    end_of_document: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | None) -> dict[str, Tensor]:
        with _readable(self.prefixes, self.index_dir):
            sample = self.dataset[index]
        if self.end_of_document is not None:
            ends = torch.ones_like(sample["tokens"], dtype=torch.bool)
            ends[:-1] = sample["tokens"][1:] == self.end_of_document
            sample["document_ends"] = ends
        return sample


@contextmanager
def _readable(prefixes: Sequence[str], index_dir: Path) -> Iterator[None]:
    """Whatever Megatron raises for damaged files, or for an index that cannot be written, becomes a
    ConfigError."""
    try:
        yield
    except (ConfigError, RuntimeError):  # the latter from the network, when another rank has left
        raise
    except Exception as error:  # OSError, IndexError, UnpicklingError, AssertionError, ...
        raise ConfigError(
            f"the samples of {', '.join(prefixes)} cannot be read or indexed "
            f"({type(error).__name__}: {explain(error)}): remove {index_dir}, which is made anew "
            "where there is room for it, or prepare the dataset again"
        ) from error


def _version(prefix: str) -> str:
    status = Path(f"{prefix}.idx").stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _num_tokens(prefix: str) -> float:
    # The name keeps the dataset alive: without it numpy would read an index that is unmapped.
    dataset = IndexedDataset(prefix)
    return float(dataset.sequence_lengths.sum())


def global_batch(dataset: SampleDataset, samples: range, micro_batch_size: int) -> list[Microbatch]:
    """This rank's microbatches of `samples`, in MegatronPretrainingSampler's order.

    Consecutive samples go to consecutive data-parallel ranks, micro_batch_size each, so what a step
    sees depends on neither the number of ranks nor on where a run was interrupted.  What is missing
    to a whole microbatch on all ranks, or to as many as an interleaved pipeline needs, is filled up
    with samples in which nothing is to be learned.
    """
    rank = parallel_state.get_data_parallel_rank()
    stride = micro_batch_size * parallel_state.get_data_parallel_world_size()
    if parallel_state.get_virtual_pipeline_model_parallel_world_size() is not None:
        multiple = stride * parallel_state.get_pipeline_model_parallel_world_size()
    else:
        multiple = stride
    stop = samples.start + -(-len(samples) // multiple) * multiple
    return [
        _microbatch(
            dataset[i if i < samples.stop else None] for i in range(first, first + micro_batch_size)
        )
        for first in range(samples.start + rank * micro_batch_size, stop, stride)
    ]


def _microbatch(samples: Iterable[dict[str, Tensor]]) -> Microbatch:
    """Of this rank's pieces of the sequences, on its device."""
    # The few memory-mapped sequences of a microbatch need no worker processes.
    rows = list(samples)
    rank = parallel_state.get_context_parallel_rank()
    size = parallel_state.get_context_parallel_world_size()
    device = parallel.device()
    return Microbatch(
        **{
            name: piece_of(torch.stack([row[name] for row in rows]), rank, size).to(
                device, non_blocking=True
            )
            for name in Microbatch._fields
            if name in rows[0]
        }
    )
