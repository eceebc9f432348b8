"""Bytes that ours moves between the processor and its memory: every number once."""

from __future__ import annotations

from typing import NamedTuple

from bgkd_megatron import ops
from bgkd_megatron.objectives import HybridObjective
from loss_bench.problem import DTYPES, OBJECTIVES, Setting
from loss_bench.variants import Variant

_FLOAT = 4
_NUM_LOSSES = 5  # of a token: csrc/core/objective.h


class Moved(NamedTuple):
    forward: int
    backward: int


def moved_bytes(variant: Variant, setting: Setting) -> Moved:
    """Of one of ours on logits.

    Two sweeps: the launch plan's.  Gradient in forward: both rows are read once and one is
    written; the backward looks at the upstream gradient of each row, which is 1.
    """
    features = HybridObjective(OBJECTIVES[variant.task], setting.vocab_size).features
    element_size = DTYPES[setting.dtype].itemsize
    plan = ops.launch_plan(setting.num_tokens, setting.vocab_size, element_size, features)
    two_sweeps = Moved(plan["forward_bytes"], plan["backward_bytes"])
    if not variant.gradient_in_forward:
        return two_sweeps
    statistics = two_sweeps.forward - 2 * setting.logits_bytes
    losses = _NUM_LOSSES * _FLOAT * setting.num_tokens
    return Moved(3 * setting.logits_bytes + statistics + losses, _FLOAT * setting.num_tokens)
