"""What the operators themselves refuse, in the same words on every device of the build.

The kernels of a device are called by their dispatch key, with tensors in the host's memory: an
argument that is refused is refused before the device is touched, so no GPU is needed.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from operator_checks import COLUMNS, VOCAB
from torch import Tensor
from vocab_inputs import make_labels, make_logits

from bgkd_megatron import ops
from bgkd_megatron.statistics import Feature

FEATURES = int(Feature.TEACHER | Feature.LABEL | Feature.FORWARD_KL)
ROWS = len(ops.stat_names(Feature(FEATURES)))
STATS = torch.zeros(ROWS, 6)
Z, T = (make_logits(6, COLUMNS, seed) for seed in (0, 1))
LABELS = make_labels(6, VOCAB, seed=2)

SHARD = {"teacher_logits": T, "labels": LABELS, "vocab_size": VOCAB, "vocab_start": 0}
SCALARS = {"features": FEATURES, "temperature": 1.0, "ignore_index": -100}
OBJECTIVE = {
    "soft_term": 1,
    "softened": False,
    "adaptive_mu": 0.5,
    "adaptive_detach": False,
    "weighting": 0,
    "entropy_maximum": 1.0,
    "soft_offset": 0.0,
    "soft_slope": 0.5,
    "hard_offset": 1.0,
    "hard_slope": -0.5,
    "hard_label": 0,
    "entropy_regularizer": 0.0,
}
BACKWARD = {"student_logits": Z, "global_stats": STATS, "upstream": STATS, **SHARD, **SCALARS}
FDIV = {"kind": 0, "lam": 0.5, "alpha": 0.0, "beta": 0.0}
FDIV_BACKWARD = {
    **BACKWARD,
    **FDIV,
    "sums": torch.zeros(2, 6),
    "upstream_divergence": torch.zeros(6),
}
# Good arguments of each operator, by the names of its schema.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "vocab_stats": {"student_logits": Z, **SHARD, **SCALARS, "power_exponent": 1.0},
    "merge_stats": {"partial": STATS[None], "labels": LABELS, **SCALARS, "power_exponent": 1.0},
    "vocab_stats_backward": BACKWARD,
    "vocab_stats_backward_": BACKWARD,
    "vocab_fdiv": {"student_logits": Z, "global_stats": STATS, **SHARD, **SCALARS, **FDIV},
    "vocab_fdiv_backward": FDIV_BACKWARD,
    "vocab_fdiv_backward_": FDIV_BACKWARD,
    "fused_loss_": {
        "student_logits": Z,
        **SHARD,
        **SCALARS,
        "power_exponent": 1.0,
        **OBJECTIVE,
    },
    "merge_loss": {
        "partial": STATS[None],
        "labels": LABELS,
        **SCALARS,
        "power_exponent": 1.0,
        **OBJECTIVE,
    },
    "scale_rows_": {"rows": Z, "scale": torch.ones(6)},
}


def call(name: str, device: str, **changes: Any) -> object:
    operator = getattr(ops, name)
    arguments = ARGUMENTS[name] | changes
    ordered = [arguments[argument.name] for argument in operator._schema.arguments]
    key = getattr(torch._C.DispatchKey, device.upper())
    return operator.redispatch(torch._C.DispatchKeySet(key), *ordered)


def meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


FDIVS = ("vocab_fdiv", "vocab_fdiv_backward", "vocab_fdiv_backward_")
BACKWARDS = ("vocab_stats_backward", "vocab_stats_backward_", *FDIVS[1:])

REFUSED = [
    ("vocab_stats", {"student_logits": Z.double()}, "student_logits must be float32, bfloat16 or"),
    ("vocab_stats", {"student_logits": Z.T}, "student_logits must be contiguous along the vocab"),
    ("vocab_stats", {"teacher_logits": T[:5]}, "teacher_logits must have the student's 6 rows"),
    ("vocab_stats", {"teacher_logits": meta(T)}, "must be on the student's device cpu, got meta"),
    ("vocab_stats", {"labels": LABELS[:5]}, "labels must be a contiguous [6]"),
    ("vocab_stats", {"labels": meta(LABELS)}, "labels must be on cpu like the logits, got meta"),
    ("vocab_stats", {"vocab_size": 0}, "vocab_size must be in [1, 16777216], got 0"),
    ("vocab_stats", {"temperature": 0.0}, "temperature must be a finite number above 0"),
    ("vocab_stats", {"features": 4}, "features 4 asks for statistics of a teacher without"),
    ("merge_stats", {"partial": STATS}, "partial must be [num_shards, rows, N], got shape"),
    ("merge_stats", {"partial": STATS[None, 1:]}, f"partial must be a contiguous [1, {ROWS}, 6]"),
    ("merge_stats", {"labels": meta(LABELS)}, "labels must be on cpu like the logits, got meta"),
    ("fused_loss_", {"teacher_logits": meta(T)}, "must be on the student's device cpu, got meta"),
    ("fused_loss_", {"labels": meta(LABELS)}, "labels must be on cpu like the logits, got meta"),
    ("fused_loss_", {"vocab_size": 131}, "the logits must hold the whole vocabulary of 131"),
    ("fused_loss_", {"soft_term": 4}, "unknown objective: soft_term 4"),
    *(
        ("fused_loss_", reads_more, "the objective reads features")
        for reads_more in [
            {"soft_term": 2},
            {"soft_term": 3},
            {"softened": True},
            {"weighting": 3},
            {"weighting": 4},
            {"entropy_regularizer": 0.1},
        ]
    ),
    ("merge_loss", {"weighting": 6}, "unknown objective: soft_term 1, weighting 6"),
    ("merge_loss", {"partial": STATS}, "partial must be [num_shards, rows, N], got shape"),
    ("merge_loss", {"labels": meta(LABELS)}, "labels must be on cpu like the logits, got meta"),
    ("merge_loss", {"soft_term": 4}, "unknown objective: soft_term 4"),
    ("scale_rows_", {"rows": Z.double()}, "rows must be float32, bfloat16 or"),
    ("scale_rows_", {"scale": torch.ones(5)}, "scale must be a contiguous [6], got shape [5]"),
    ("scale_rows_", {"scale": meta(torch.ones(6))}, "scale must be on cpu like the logits, got"),
    *(
        (name, changes, message)
        for name in BACKWARDS
        for changes, message in [
            ({"student_logits": Z[0]}, "student_logits must be [N, V_local], got shape [130]"),
            ({"upstream": STATS.double()}, "upstream must be float32, got Double"),
            ({"upstream": STATS[:, 1:]}, f"upstream must be a contiguous [{ROWS}, 6], got shape"),
            ({"upstream": meta(STATS)}, "upstream must be on cpu like the logits, got meta"),
            ({"global_stats": meta(STATS)}, "global_stats must be on cpu like the logits, got"),
        ]
    ),
    *(
        (name, changes, message)
        for name in FDIVS
        for changes, message in [
            ({"student_logits": Z.double()}, "student_logits must be float32, bfloat16 or"),
            ({"teacher_logits": T[:5]}, "teacher_logits must have the student's 6 rows"),
            ({"labels": LABELS[:5]}, "labels must be a contiguous [6]"),
            ({"global_stats": STATS[1:]}, f"global_stats must be a contiguous [{ROWS}, 6]"),
            ({"global_stats": meta(STATS)}, "global_stats must be on cpu like the logits, got"),
            ({"features": 2}, "got teacher_logits without the feature"),
            ({"kind": 5}, "kind must be in [0, 5), one of core/fdiv.h, got 5"),
            ({"kind": 4, "alpha": 0.3, "beta": -0.295}, "alpha, beta and their sum must each be 0"),
            ({"kind": 4, "alpha": math.nan}, "alpha, beta and their sum must each be 0"),
            ({"kind": -1}, "kind must be in [0, 5), one of core/fdiv.h, got -1"),
            ({"lam": 0.0}, "lam must be between 0 and 1, by at least 2^-24, got 0"),
            ({"kind": 2, "lam": 1.0}, "lam must be between 0 and 1, by at least 2^-24, got 1"),
            ({"lam": math.nan}, "lam must be between 0 and 1, by at least 2^-24, got nan"),
        ]
    ),
    *(
        (name, changes, message)
        for name in FDIVS[1:]
        for changes, message in [
            ({"sums": torch.zeros(3, 6)}, "sums must be a contiguous [2, 6], got shape [3, 6]"),
            ({"sums": torch.zeros(2, 6).double()}, "sums must be float32, got Double"),
            ({"upstream_divergence": torch.zeros(1, 6)}, "must be a contiguous [6], got shape"),
            ({"upstream_divergence": torch.zeros(6).half()}, "must be float32, got Half"),
        ]
    ),
]


@pytest.mark.parametrize("device", ops.DEVICES)
@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_refuses(name: str, changes: dict[str, Any], message: str, device: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: .*{re.escape(message)}"):
        call(name, device, **changes)


@pytest.mark.parametrize("device", ops.DEVICES)
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name.endswith("_")])
def test_inplace_refuses_rows_that_overlap(name: str, device: str) -> None:
    written = "rows" if name == "scale_rows_" else "student_logits"
    with pytest.raises(RuntimeError, match="single memory location"):
        call(name, device, **{written: Z[:1].expand(6, COLUMNS)})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_takes_the_good_arguments(name: str) -> None:
    tensors = {
        n: value.clone() for n, value in ARGUMENTS[name].items() if isinstance(value, Tensor)
    }
    call(name, "cpu", **tensors)


def test_every_operator_is_here() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("bgkd::")}
    assert names == {f"bgkd::{name}" for name in ARGUMENTS}
