"""Special registers: who a thread is, and how large the launch is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from .operation import Array
from .syntax import UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine

VECTOR = re.compile(r"%(\w+)\.([xyz])$")


def special_register(m: Machine, name: str) -> Array:
    """uint32, one element or one for each lane."""
    found = VECTOR.match(name)
    value = _vector(m, found[1], "xyz".index(found[2])) if found else _scalar(m, name)
    if value is None:
        raise UnsupportedPtxError(f"special register {name}")
    return np.atleast_1d(value).astype(np.uint32)


def _vector(m: Machine, name: str, axis: int) -> Array | int | None:
    launch = m.launch
    cluster = launch.cluster
    if name == "tid":
        thread = np.tile(np.arange(m.block_size), m.num_blocks)
        return _coordinate(thread, launch.block, axis)
    coordinate = np.repeat(launch.coordinates[m.blocks, axis], m.block_size)
    per_lane = {
        "ctaid": lambda: coordinate,
        "clusterid": lambda: coordinate // cluster[axis],
        "cluster_ctaid": lambda: coordinate % cluster[axis],
    }
    if name in per_lane:
        return per_lane[name]()
    uniform = {
        "ntid": launch.block[axis],
        "nctaid": launch.grid[axis],
        "nclusterid": launch.grid[axis] // cluster[axis],
        "cluster_nctaid": cluster[axis],
    }
    return uniform.get(name)


def _coordinate(number: Array, sizes: tuple[int, int, int], axis: int) -> Array:
    for size in sizes[:axis]:
        number = number // size
    return number % sizes[axis]


def _scalar(m: Machine, name: str) -> Array | int | None:
    lane = m.all_lanes % 32
    warp = m.all_lanes % m.block_size // 32
    bit = np.uint64(1) << lane.astype(np.uint64)
    one = np.uint64(1)
    masks = {"eq": bit, "lt": bit - one, "le": (bit << one) - one,
             "gt": ~((bit << one) - one), "ge": ~(bit - one)}  # fmt: skip
    if name.startswith("%lanemask_"):
        return masks[name.removeprefix("%lanemask_")] & np.uint64(0xFFFFFFFF)
    values: dict[str, Array | int] = {
        "%laneid": lane,
        "%warpid": warp,
        "%nwarpid": m.block_size // 32,
        "%smid": m.all_lanes // m.block_size % m.launch.NUM_SMS,
        "%nsmid": m.launch.NUM_SMS,
        "%cluster_ctarank": m.block_of(m.all_lanes) % m.cluster_size,
        "%cluster_nctarank": m.cluster_size,
        "%is_explicit_cluster": int(m.launch.explicit_cluster),
        "%dynamic_smem_size": m.launch.dynamic_shared,
        "WARP_SZ": 32,
    }
    return values.get(name)
