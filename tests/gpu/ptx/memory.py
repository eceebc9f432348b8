"""Bytes that know whether they exist, were written, or are still being filled."""

from __future__ import annotations

import numpy as np

from .operation import Array

EXISTS, WRITTEN, FILLING = 1, 2, 4
READABLE = EXISTS | WRITTEN
POISON = 0xFF  # what unwritten bytes hold: NaN in every float format

# Address windows. A shared address is 32 bits wide; generic addresses of shared memory start at
# SHARED_WINDOW. Address (rank + 1) << RANK_SHIFT | offset is block `rank` of the cluster.
GLOBAL_BASE = 0x7F_0000_0000
SHARED_WINDOW = 0x7E_0000_0000
PARAMETER_WINDOW = 0x7D_0000_0000
RANK_SHIFT = 24
FIRST_SHARED = 1024  # the system's own part of shared memory comes first


def _views(bytes_: Array) -> dict[int, Array]:
    return {
        1: bytes_,
        2: bytes_.view(np.uint16),
        4: bytes_.view(np.uint32),
        8: bytes_.view(np.uint64),
        16: bytes_.view("V16"),  # gathered faster than pairs of uint64
    }


class Memory:
    """A flat space. Offsets are checked by the caller against `size`."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // 256) * 256
        self.bytes = np.zeros(self.size, np.uint8)  # zeros take no room before they are touched
        self.flags = np.zeros(self.size, np.uint8)
        self._data = _views(self.bytes)
        self._flags = _views(self.flags)

    def create(self, offset: int, size: int) -> None:
        self.flags[offset : offset + size] = EXISTS
        self.bytes[offset : offset + size] = POISON

    def fill(self, offset: int, data: Array) -> None:
        self.bytes[offset : offset + data.size] = data
        self.flags[offset : offset + data.size] |= WRITTEN

    def all_have(self, offsets: Array, size: int, wanted: int) -> bool:
        """Whether every byte accessed has exactly these flags; WRITTEN only counts if wanted."""
        unit = min(size, 8)
        flags = self._gather_flags(offsets, size)
        pattern = flags.dtype.type(int.from_bytes(bytes([wanted]) * unit, "little"))
        if wanted & WRITTEN:
            return bool((flags == pattern).all())
        ignored = flags.dtype.type(int.from_bytes(bytes([WRITTEN]) * unit, "little"))
        return bool(((flags & ~ignored) == pattern).all())

    def lanes_without(self, offsets: Array, size: int, flag: int) -> Array:
        """For each access, whether some byte lacks this flag."""
        found = self._bytewise(offsets, size) & flag
        return np.asarray((found == 0).any(axis=1))

    def lanes_with(self, offsets: Array, size: int, flag: int) -> Array:
        found = self._bytewise(offsets, size) & flag
        return np.asarray(found.any(axis=1))

    def _bytewise(self, offsets: Array, size: int) -> Array:
        return self.flags[offsets[:, None] + np.arange(size)]

    def _gather_flags(self, offsets: Array, size: int) -> Array:
        if size <= 8:
            return self._flags[size].take(offsets // size)
        wide = self._flags[16].take(_sixteens(offsets, size))
        return wide.view(np.uint64)

    def load(self, offsets: Array, size: int) -> Array:
        """(n, size) bytes."""
        if size <= 8:
            values = self._data[size].take(offsets // size)
        else:
            values = self._data[16].take(_sixteens(offsets, size))
        return values.view(np.uint8).reshape(-1, size)

    def store(self, offsets: Array, values: Array) -> None:
        """values: (n, size) bytes; a later row wins."""
        size = values.shape[1]
        unit = min(size, 16)
        where = offsets // size if size <= 16 else _sixteens(offsets, size)
        self._data[unit][where] = values.reshape(-1).view(self._data[unit].dtype)
        written = bytes([READABLE]) * unit
        self._flags[unit][where] = np.frombuffer(written, self._flags[unit].dtype)[0]

    def values(self, type_: np.dtype) -> Array:
        """All of memory as elements of this type, for atomics."""
        return self._data[type_.itemsize].view(type_)

    def mark(self, offsets: Array, size: int, flag: int) -> None:
        self.flags[offsets[:, None] + np.arange(size)] |= np.uint8(flag)

    def unmark(self, offsets: Array, size: int, flag: int) -> None:
        self.flags[offsets[:, None] + np.arange(size)] &= np.uint8(255 ^ flag)


def _sixteens(offsets: Array, size: int) -> Array:
    if size == 16:
        return offsets >> 4
    return ((offsets >> 4)[:, None] + np.arange(size // 16)).ravel()
