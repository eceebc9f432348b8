"""The compiled operators `torch.ops.bgkd.*`, their fake kernels for torch.compile, and the facts of
the build.

Forward-only functions of raw statistics. Merging over a process group and autograd are in
`bgkd_megatron.vocab_stats` and `bgkd_megatron.vocab_fdiv`.
"""

from __future__ import annotations

from typing import Any

import torch  # loads the libraries that _C is linked against, so it comes first
from torch import Tensor

from bgkd_megatron import _C
from bgkd_megatron.statistics import Feature

# Facts of the build, read once: torch.compile cannot trace a call into pybind11.
DEVICES: tuple[str, ...] = tuple(_C.build_info()["devices"])
_STATISTICS = tuple(_C.statistics())

vocab_stats = torch.ops.bgkd.vocab_stats.default
merge_stats = torch.ops.bgkd.merge_stats.default
vocab_stats_backward = torch.ops.bgkd.vocab_stats_backward.default
vocab_stats_backward_ = torch.ops.bgkd.vocab_stats_backward_.default
vocab_fdiv = torch.ops.bgkd.vocab_fdiv.default
vocab_fdiv_backward = torch.ops.bgkd.vocab_fdiv_backward.default
vocab_fdiv_backward_ = torch.ops.bgkd.vocab_fdiv_backward_.default
fused_loss_ = torch.ops.bgkd.fused_loss_.default
merge_loss = torch.ops.bgkd.merge_loss.default
scale_rows_ = torch.ops.bgkd.scale_rows_.default


def build_info() -> dict[str, Any]:
    """Compiler, instruction set of the CPU kernels in use, devices with kernels; of a CUDA build
    the toolkit's version and the architectures, written as in TORCH_CUDA_ARCH_LIST, else None."""
    return _C.build_info()


def stat_names(features: Feature) -> list[str]:
    """Names of the rows of a statistics tensor [rows, N] for these features, in order."""
    return [name for name, required in _STATISTICS if required & ~int(features) == 0]


def launch_plan(
    num_tokens: int, num_columns: int, element_size: int, features: Feature
) -> dict[str, int]:
    """How a CPU launch is cut into tasks, and the bytes that it reads and writes.

    num_columns: local vocabulary columns; element_size: bytes of a logit, 2 or 4. Raises ValueError
        on other sizes.
    """
    return _C.launch_plan(num_tokens, num_columns, element_size, int(features))


def cuda_launch_plan(
    num_tokens: int, num_columns: int, element_size: int, features: Feature, num_sms: int
) -> dict[str, int]:
    """How a CUDA launch on a device of num_sms multiprocessors is cut: a block of `threads` takes
    `columns_per_part` columns of a row; with more than one part, vocab_stats writes
    `workspace_bytes` and reads them again.

    Plain arithmetic, in every build. The bytes of logits and statistics are those of `launch_plan`.
    Arguments and errors as there; num_sms is at least 1.
    """
    return _C.cuda_launch_plan(num_tokens, num_columns, element_size, int(features), num_sms)


def tokens_in_cache(num_columns: int, element_size: int, cache_bytes: int) -> int:
    """Tokens whose two shards of num_columns stay in a cache of cache_bytes (a GPU's L2) from their
    statistics to their gradient, although the statistics of as many more come between:
    `tokens_per_chunk` of hybrid_loss. Errors as in `launch_plan`.
    """
    return _C.tokens_in_cache(num_columns, element_size, cache_bytes)


# ---- fake kernels: shapes only. Arguments are checked by the real ones.


@torch.library.register_fake("bgkd::vocab_stats")
def _(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, vocab_size: int,
      vocab_start: int, features: int, *unused: Any) -> Tensor:  # fmt: skip
    shape = (len(stat_names(Feature(features))), student_logits.shape[0])
    return student_logits.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("bgkd::merge_stats")
def _(partial: Tensor, *unused: Any) -> Tensor:
    return torch.empty_like(partial[0])


@torch.library.register_fake("bgkd::vocab_stats_backward")
def _(global_stats: Tensor, upstream: Tensor, student_logits: Tensor, *unused: Any) -> Tensor:
    return student_logits.new_empty(student_logits.shape)


@torch.library.register_fake("bgkd::vocab_stats_backward_")
def _(student_logits: Tensor, *unused: Any) -> None:
    return None


@torch.library.register_fake("bgkd::vocab_fdiv")
def _(student_logits: Tensor, *unused: Any) -> Tensor:
    return student_logits.new_empty((2, student_logits.shape[0]), dtype=torch.float32)


@torch.library.register_fake("bgkd::vocab_fdiv_backward")
def _(global_stats: Tensor, upstream: Tensor, sums: Tensor, upstream_divergence: Tensor,
      student_logits: Tensor, *unused: Any) -> Tensor:  # fmt: skip
    return student_logits.new_empty(student_logits.shape)


@torch.library.register_fake("bgkd::vocab_fdiv_backward_")
def _(student_logits: Tensor, *unused: Any) -> None:
    return None


@torch.library.register_fake("bgkd::fused_loss_")
def _(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, vocab_size: int,
      features: int, *unused: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_tokens = student_logits.shape[0]
    rows = len(stat_names(Feature(features)))
    stats = student_logits.new_empty((rows, num_tokens), dtype=torch.float32)
    return stats, student_logits.new_empty((5, num_tokens), dtype=torch.float32)


@torch.library.register_fake("bgkd::merge_loss")
def _(partial: Tensor, *unused: Any) -> tuple[Tensor, Tensor, Tensor]:
    losses = partial.new_empty((5, partial.shape[2]))
    return torch.empty_like(partial[0]), losses, torch.empty_like(partial[0])


@torch.library.register_fake("bgkd::scale_rows_")
def _(rows: Tensor, scale: Tensor) -> None:
    return None
