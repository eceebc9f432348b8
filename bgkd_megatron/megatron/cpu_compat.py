"""Run Megatron-Core 0.19 on a machine without a GPU, over gloo.

Megatron names the CUDA device in many places (``device="cuda"``, ``torch.cuda.current_device()``,
CUDA generators and streams).  `install` redirects those names to the CPU, in this process only;
nothing on disk is edited, and where CUDA is available it does nothing.  The launcher calls it
before the first ``import megatron``; no module of this package does so on import.

The package patches one thing more, on every machine, and that while it saves: see
`weights._save_without_helper_process`.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["install"]

_CPU = torch.device("cpu")
_PAGED_STASH = "megatron.core.transformer.moe.ops.paged_stash"


def install() -> None:
    """Redirect Megatron's CUDA calls to the CPU.  Does nothing with CUDA or when already done.

    Call it before the first ``import megatron`` and in the thread that runs the model: the
    redirection of ``device="cuda"`` is a per-thread mode, and on the CPU autograd runs backward in
    the thread that calls it.
    """
    cuda: Any = torch.cuda
    if cuda.is_available() or cuda.current_stream is _current_stream:
        return
    if importlib.util.find_spec("triton") is None:
        sys.modules[_PAGED_STASH] = _paged_stash_stand_in()
    _import_megatron_uncompiled()
    _redirect_cuda_api()
    _redirect_rng()
    _silence_hints_for_gpus()
    _CudaToCpu().__enter__()  # for the life of this thread


class _CudaToCpu(TorchFunctionMode):
    """Turns ``device="cuda"`` into the CPU in every call of a torch function; nothing is pinned."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.cuda:
            tensor: torch.Tensor = args[0]
            return tensor
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizers accept only "torch.cuda.FloatTensor" and its 16-bit relatives.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _current_stream(device: object = None) -> None:
    """There are no streams.  Megatron asks for one, and uses it only to overlap communication."""


def _redirect_cuda_api() -> None:
    # Each name gets a function object of its own: torch._dynamo refuses one object under two names.
    cuda: Any = torch.cuda
    cuda.current_stream = _current_stream
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda device=None: None
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()


def _redirect_rng() -> None:
    """Megatron's tracker of CUDA generator states then swaps the states of the CPU generator."""
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: (
        torch.get_rng_state()
    )
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(
        state
    )


def _silence_hints_for_gpus() -> None:
    # Megatron's tracker warns "CPU RNG state changed within GPU RNG context": here that is its job.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", "When using async grad allreduce .* CUDA_DEVICE_MAX_CONNECTIONS", UserWarning
    )


def _import_megatron_uncompiled() -> None:
    """Import Megatron with torch.compile as the identity.

    Its small fused functions then stay eager: no C++ compiler is called at run time, and the
    import takes half as long, for it does not load torch._dynamo.
    """
    compile_ = torch.compile

    def identity(model: Any = None, **options: Any) -> Any:
        return model if model is not None else (lambda function: function)

    torch.compile = identity
    try:
        import megatron.core.distributed
        import megatron.core.models.gpt
        import megatron.core.optimizer
        import megatron.core.pipeline_parallel  # noqa: F401
    finally:
        torch.compile = compile_


def _paged_stash_stand_in() -> types.ModuleType:
    """Stands in for the one module on Megatron's import path that needs triton (a 1 GB package).

    It holds GPU kernels of mixture-of-experts models; using one here is an error.
    """

    class _Kernel:
        def __getitem__(self, grid: object) -> Any:
            raise RuntimeError("Megatron's paged stash kernels need triton and a GPU")

    module: Any = types.ModuleType(_PAGED_STASH)
    module.GLOBAL_BLOCK_SIZE = 1024
    module.paged_stash_copy_kernel = _Kernel()
    module.paged_stash_pop_kernel = _Kernel()
    return module
