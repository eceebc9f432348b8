"""Datasets: masks, labels, order, blending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from world import SEQ_LENGTH, VOCAB_EVEN, VOCAB_PADDED, layout, write_dataset

from bgkd_megatron.megatron.dataset import DatasetFactory, SampleDataset, global_batch
from bgkd_megatron.megatron.loss import IGNORE_INDEX

Check = Callable[[Path], None]


def checks(world_size: int) -> dict[str, Check]:
    alone = {
        "valid_set_holds_every_token_once": valid_set_holds_every_token_once,
        "labels_follow_the_loss_mask": labels_follow_the_loss_mask,
        "restart_continues_the_order": restart_continues_the_order,
        "new_data_under_an_old_name": new_data_under_an_old_name,
        "blend_follows_weights": blend_follows_weights,
        "bad_datasets_are_refused": bad_datasets_are_refused,
    }
    return {
        1: alone,
        2: {"ranks_share_a_batch": ranks_share_a_batch},
    }.get(world_size, {})


def factory(workspace: Path, vocab_size: int = VOCAB_PADDED) -> DatasetFactory:
    return DatasetFactory(SEQ_LENGTH, 1, vocab_size, workspace / "sample_index")


def learned(dataset: SampleDataset) -> list[tuple[int, int]]:
    """(token, next token) of all labels in the samples of a dataset, sorted."""
    pairs = []
    for i in range(len(dataset)):
        sample = dataset[i]
        keep = sample["labels"] != IGNORE_INDEX
        pairs += zip(sample["tokens"][keep].tolist(), sample["labels"][keep].tolist(), strict=True)
    return sorted(pairs)


def stream(prefix: Path) -> np.ndarray:
    dataset = IndexedDataset(str(prefix))
    return np.concatenate([dataset[i] for i in range(len(dataset))]).astype(int)


def in_order(workspace: Path, prefix: Path) -> SampleDataset:
    """Megatron shuffles documents; over one document the stream is known."""
    return factory(workspace).valid(str(prefix))


def valid_set_holds_every_token_once(workspace: Path) -> None:
    tokens = np.arange(3 * SEQ_LENGTH + 5) % VOCAB_PADDED
    write_dataset(workspace / "one", [tokens])
    pairs = learned(in_order(workspace, workspace / "one"))
    assert pairs == sorted(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


def labels_follow_the_loss_mask(workspace: Path) -> None:
    tokens = np.arange(5 * SEQ_LENGTH + 3) % VOCAB_PADDED
    mask = (np.random.default_rng(1).random(len(tokens)) < 0.5).astype(np.uint8)
    write_dataset(workspace / "one_masked", [tokens], [mask])
    pairs = learned(in_order(workspace, workspace / "one_masked"))
    expected = [(a, b) for a, b, m in zip(tokens[:-1], tokens[1:], mask[1:], strict=True) if m]
    assert pairs == sorted(expected)


def restart_continues_the_order(workspace: Path) -> None:
    with layout():
        prefixes = [str(workspace / "plain"), str(workspace / "masked")]
        dataset = factory(workspace).train(prefixes, None, 24)
        whole = global_batch(dataset, range(0, 24), 2)
        rest = global_batch(dataset, range(8, 24), 2)
        assert len(whole) == 12
        for a, b in zip(whole[4:], rest, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        # The samples differ from each other: the order is not trivially the same.
        assert len({tuple(b.tokens.flatten().tolist()) for b in whole}) > 6


def new_data_under_an_old_name(workspace: Path) -> None:
    """Megatron keeps its index of samples; it must not be used for other data."""
    for tokens in (np.arange(40), np.arange(100, 190)):
        write_dataset(workspace / "changing", [tokens])
        pairs = learned(factory(workspace).valid(str(workspace / "changing")))
        assert pairs == list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


def blend_follows_weights(workspace: Path) -> None:
    low, high = np.arange(0, 50), np.arange(100, 150)
    write_dataset(workspace / "low", [low] * 20)
    write_dataset(workspace / "high", [high] * 20)
    prefixes = [str(workspace / "low"), str(workspace / "high")]
    for weights, share in (([3.0, 1.0], 0.75), (None, 0.5)):
        dataset = factory(workspace).train(prefixes, weights, 40)
        from_low = sum(int(dataset[i]["tokens"].max()) < 50 for i in range(40))
        assert abs(from_low / 40 - share) < 0.06, (weights, from_low)


def bad_datasets_are_refused(workspace: Path) -> None:
    small = factory(workspace, vocab_size=10).valid(str(workspace / "plain"))
    with pytest.raises(ValueError, match=r"token id \d+, but the model's vocabulary has 10 tokens"):
        [small[i] for i in range(len(small))]
    write_dataset(workspace / "short", [np.arange(1)])
    with pytest.raises(ValueError, match="holds fewer than two tokens"):
        factory(workspace).valid(str(workspace / "short"))
    write_dataset(workspace / "torn", [np.arange(50)], [np.ones(40, np.uint8)])
    with pytest.raises(ValueError, match="does not have the sequence lengths"):
        factory(workspace, VOCAB_EVEN).valid(str(workspace / "torn"))


def ranks_share_a_batch(workspace: Path) -> None:
    """Two data-parallel ranks together see the samples of one, and pad the end with nothing."""
    prefixes = [str(workspace / "masked")]
    with layout(tensor_parallel=2):
        dataset = factory(workspace).train(prefixes, None, 8)
        alone = torch.cat([b.tokens for b in global_batch(dataset, range(7), 1)])
    with layout(tensor_parallel=1):
        mine = global_batch(dataset, range(7), 1)
        rank = torch.distributed.get_rank()
        expected = alone[rank::2]
        assert torch.equal(torch.cat([b.tokens for b in mine])[: len(expected)], expected)
        assert len(mine) == 4
        last_is_empty = bool((mine[-1].labels == IGNORE_INDEX).all())
        assert last_is_empty == (rank == 1)
