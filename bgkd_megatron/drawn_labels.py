"""Hard labels that are drawn: from the teacher's distribution, or uniformly.

By inversion of the cumulative distribution, in whole numbers: a token weighs
floor(2^38 e^(t - max t)), and integers add up to the same sum in any order. So the label depends on
the seed and on the logits alone, not on how many ranks share the vocabulary. A token less likely
than 2^-38 of the likeliest one is never drawn.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.vocab_shard import VocabShard

__all__ = ["drawn_labels"]

# 2^38 times at most 2^24 tokens stays below 2^63.
_LARGEST_WEIGHT = 2.0**38
# Elements for which the weights and their running sums, 16 bytes each, are held at a time.
_CHUNK = 1 << 24


def drawn_labels(
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    *,
    num_tokens: int,
    shard: VocabShard,
    seed: int,
    device: torch.device,
    ignore_index: int = -100,
) -> Tensor:
    """[N] int64: for each token one drawn from softmax(teacher_logits), without them any of the
    vocabulary; ignore_index where `labels` are. Bitwise equal on all ranks of shard.tp_group.

    teacher_logits: [N, V_local]; NaN or no finite logit gives the label 0, the loss tells.
    seed: must be the same on the ranks of the group, and differ between microbatches.
    Collective with teacher_logits and tensor parallelism: three collectives of 8 N bytes.
    No host synchronization.
    """
    generator = torch.Generator(device).manual_seed(seed)
    uniform = torch.rand(num_tokens, dtype=torch.float64, device=device, generator=generator)
    if teacher_logits is None:
        drawn = (uniform * shard.vocab_size).long().clamp_(max=shard.vocab_size - 1)
    else:
        drawn = _from_teacher(teacher_logits, uniform, shard)
    return drawn if labels is None else torch.where(labels == ignore_index, ignore_index, drawn)


@torch.no_grad()
def _from_teacher(teacher_logits: Tensor, uniform: Tensor, shard: VocabShard) -> Tensor:
    columns = max(min(shard.vocab_size - shard.start, teacher_logits.shape[1]), 0)
    logits = teacher_logits[:, :columns]  # without padding
    rows = max(_CHUNK // max(columns, 1), 1)
    lowest = torch.finfo(torch.float32).min
    maximum = uniform.new_full(uniform.shape, lowest, dtype=torch.float32)
    if columns:
        maximum = logits.amax(dim=-1).float().clamp(min=lowest)
    maximum = _over_ranks(maximum, shard).amax(dim=0)

    def weights(part: slice) -> Tensor:
        relative = (logits[part].float() - maximum[part, None]).exp()
        return (relative * _LARGEST_WEIGHT).nan_to_num_(0.0).long()

    parts = [slice(start, start + rows) for start in range(0, len(uniform), rows)]
    sums = torch.cat([weights(part).sum(dim=-1) for part in parts] or [uniform.long()])
    sums_of_ranks = _over_ranks(sums, shard)
    total = sums_of_ranks.sum(dim=0)
    point = (uniform * total).long().minimum(total - 1).clamp_(min=0)
    point = point - sums_of_ranks[: shard.tp_rank].sum(dim=0)  # from the start of this shard
    drawn = torch.zeros_like(point)
    for part in parts if columns else []:
        running = weights(part).cumsum(dim=-1)
        column = torch.searchsorted(running, point[part, None], right=True).squeeze(-1)
        drawn[part] = shard.start + column
    # One rank alone has the point in its shard.
    is_here = (point >= 0) & (point < sums)
    return _over_ranks(torch.where(is_here, drawn, 0), shard).sum(dim=0)


def _over_ranks(own: Tensor, shard: VocabShard) -> Tensor:
    """[tp_size, N], in rank order."""
    if shard.tp_size == 1:
        return own[None]
    everyone = [torch.empty_like(own) for _ in range(shard.tp_size)]
    dist.all_gather(everyone, own.contiguous(), group=shard.tp_group)
    return torch.stack(everyone)
