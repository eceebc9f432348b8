"""Files that were changed on disk after they were written."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from runs import last_checkpoint, train, weights
from world import SEQ_LENGTH, VOCAB_PADDED, layout, run_config, write_dataset

from bgkd_megatron.megatron.dataset import DatasetFactory
from bgkd_megatron.megatron.errors import ConfigError

Check = Callable[[Path], None]
Damage = Callable[[Path], None]


def checks(world_size: int) -> dict[str, Check]:
    if world_size == 1:
        return {"damaged_dataset_is_told": damaged_dataset_is_told}
    if world_size == 2:
        return {
            "damaged_sample_index_is_told": damaged_sample_index_is_told,
            "sample_index_that_cannot_be_written_is_told": sample_index_that_cannot_be_written,
            "damaged_weights_are_refused": damaged_weights_are_refused,
            "damaged_checkpoint_is_refused": damaged_checkpoint_is_refused,
        }
    return {}


def on_first_rank(action: Callable[[], object]) -> None:
    if dist.get_rank() == 0:
        action()
    dist.barrier()


def flip_bit(file: Path) -> None:
    """In the middle, where the numbers are; every other check of the file still passes."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damaged_weights_are_refused(workspace: Path) -> None:
    """Both ranks refuse them, and name every file, whichever of them would read it."""
    original = workspace / f"student_{VOCAB_PADDED}"
    root = workspace / "damaged"
    first, *_ = files = sorted((original / "weights").glob("*.distcp"))
    cases: list[tuple[list[tuple[Path, Damage]], str]] = [
        ([(file, flip_bit)], rf"damaged cannot be read .* {file.name}: hash mismatch")
        for file in files
    ]
    cases += [
        ([(first, cut_short)], rf"{first.name}: hash mismatch"),
        ([(first, Path.unlink)], rf"{first.name}: file missing"),
        (
            [(first, Path.unlink), (first.with_name(".metadata"), flip_bit)],
            rf"\.metadata: hash mismatch.* {first.name}: file missing",
        ),
        ([(first.with_name("integrity.json"), cut_short)], r"integrity\.json is damaged"),
    ]
    with layout(2):
        intact = weights(original)
        for damages, message in cases:
            on_first_rank(partial(shutil.copytree, original, root))
            for file, damage in damages:
                on_first_rank(partial(damage, root / "weights" / file.name))
            with pytest.raises(ConfigError, match=message) as error:
                weights(root)
            assert "\n" not in str(error.value)
            dist.barrier()
            on_first_rank(partial(shutil.rmtree, root))

        on_first_rank(partial(shutil.copytree, original, root))
        on_first_rank((root / "weights" / "notes.txt").touch)  # nobody's business
        assert all(torch.equal(weight, intact[name]) for name, weight in weights(root).items())
        # As written before there were hashes.
        on_first_rank((root / "weights" / "integrity.json").unlink)
        assert all(torch.equal(weight, intact[name]) for name, weight in weights(root).items())


def damaged_checkpoint_is_refused(workspace: Path) -> None:
    layout_2 = {"tensor_parallel": 2}
    whole = run_config(workspace, "run_tp2", parallel=layout_2)  # ran before
    config = run_config(workspace, "damaged_run", parallel=layout_2)
    on_first_rank(partial(shutil.copytree, whole.checkpoint.dir, config.checkpoint.dir))
    file = max((last_checkpoint(config) / "weights").glob("*.distcp"))
    on_first_rank(partial(flip_bit, file))
    message = rf"{file.name}: hash mismatch .* older checkpoint into .*/latest"
    with pytest.raises(ConfigError, match=message):
        train(config)


def read_all(prefixes: list[Path], index_dir: Path) -> None:
    names = [str(prefix) for prefix in prefixes]
    dataset = DatasetFactory(SEQ_LENGTH, 1, VOCAB_PADDED, index_dir).train(names, None, 40)
    for i in range(len(dataset)):
        dataset[i]


def refused(prefixes: list[Path], index_dir: Path, reason: str = "") -> None:
    """By all ranks, on one line."""
    message = rf"cannot be read or indexed \(.*{reason}.*\): remove {index_dir}, which is made anew"
    with pytest.raises(ConfigError, match=message) as error:
        read_all(prefixes, index_dir)
    assert "\n" not in str(error.value)
    dist.barrier()


def damaged_sample_index_is_told(workspace: Path) -> None:
    """Cut short, replaced by garbage, or with garbage behind a header that is right."""
    prefixes, index_dir = [workspace / "plain", workspace / "masked"], workspace / "damaged_index"
    read_all(prefixes, index_dir)
    files = sorted(index_dir.glob("*.npy"))
    assert len(files) == 2 * 3 + 2  # of each dataset, and of the blend
    for file in files:
        intact = file.read_bytes()
        wrong_data = intact[:128] + b"\x7f" * len(intact[128:])
        dist.barrier()
        for content in (b"", intact[:60], intact[:-1], b"garbage" * 9, wrong_data):
            on_first_rank(partial(file.write_bytes, content))
            refused(prefixes, index_dir)
        on_first_rank(partial(file.write_bytes, intact))
    read_all(prefixes, index_dir)


def damaged_dataset_is_told(workspace: Path) -> None:
    prefix, index_dir = workspace / "cut", workspace / "cut_index"
    write_dataset(prefix, [np.arange(50)], [np.ones(50, np.uint8)])
    for suffix in (".bin", ".idx", ".loss_mask.bin", ".loss_mask.idx"):
        file = Path(f"{prefix}{suffix}")
        intact = file.read_bytes()
        file.write_bytes(intact[:-2])
        refused([prefix], index_dir)
        file.write_bytes(b"")
        refused([prefix, workspace / "plain"], index_dir)
        file.write_bytes(intact)


def sample_index_that_cannot_be_written(workspace: Path) -> None:
    """By rank 0, which writes it: a file is in its place, or the disk is full."""
    prefixes, index_dir = [workspace / "plain"], workspace / "no_index"
    on_first_rank(partial(index_dir.write_text, "a file"))
    refused(prefixes, index_dir, "File exists")
    on_first_rank(index_dir.unlink)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        refused(prefixes, index_dir, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    read_all(prefixes, index_dir)
