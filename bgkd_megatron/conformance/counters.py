"""What one call costs, counted from PyTorch's operators while it runs.

A dispatch mode sees every operator that reaches PyTorch, also in backward (on a CPU autograd runs
in the thread that calls it): collectives of torch.distributed, of its functional collectives and
of DTensor alike.  It does not see inside code that torch.compile or Triton fused: there the bytes
moved are too few; collectives are still seen.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ByteCounter", "CostCounter"]

_FREE = ("aten::empty", "aten::set_")
_NAMESPACES = ("c10d", "_c10d_functional")
# They communicate nothing, or complete what was counted when it began.
_NO_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd", "monitored_barrier_")


class ByteCounter(TorchDispatchMode):
    """The bytes that the operators in the with block read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.moved_bytes = 0
        """Every operator reads each input and writes each output once.  Views, allocations and
        collectives are free, broadcast elements count once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if FakeTensor in types:
            return func(*args, **(kwargs or {}))  # DTensor asks for shapes; nothing is computed
        if any(kind not in (Tensor, Parameter) for kind in types):
            return NotImplemented  # a DTensor, say: it calls operators on plain tensors next
        result = func(*args, **(kwargs or {}))
        self.count(func, args, kwargs or {}, result)
        return result

    def count(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Called after every operator."""
        is_free = func.is_view or func.name().startswith(_FREE) or func.namespace in _NAMESPACES
        if not is_free:
            self.moved_bytes += sum(map(_touched_bytes, _tensors((args, kwargs, result))))


class CostCounter(ByteCounter):
    """Collectives, bytes sent and moved, and the storages that were made in the with block."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        """Calls of this rank, by operator."""
        self.payload_bytes = 0
        """Of the tensors that this rank hands over; how far they travel is the backend's affair."""
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def count(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        super().count(func, args, kwargs, result)
        if func.namespace in _NAMESPACES:
            self._count_collective(func, args, kwargs)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._storages[reference.cdata] = (reference, storage.nbytes())

    def _count_collective(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        name = func._schema.name.split("::")[1]
        if name in _NO_COLLECTIVES:
            return
        self.collectives[name] += 1
        names = [argument.name for argument in func._schema.arguments]
        inputs = next((i for i, name in enumerate(names) if name.startswith("input")), 0)
        given = args[inputs] if inputs < len(args) else kwargs.get(names[inputs])
        self.payload_bytes += sum(t.numel() * t.element_size() for t in _tensors(given))

    def kept_bytes(self, *given: Tensor) -> int:
        """Bytes made in the with block that are still alive, without the storages of `given`: what
        autograd, or the loss itself, keeps for backward."""
        gc.collect()
        excluded = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given}
        return sum(
            size
            for key, (reference, size) in self._storages.items()
            if key not in excluded and not reference.expired()
        )


def _tensors(tree: object) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _touched_bytes(tensor: Tensor) -> int:
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride != 0 or size == 0 else 1
    return elements * tensor.element_size()
