"""What the operator refuses: every message says what was expected and what came."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from operator_checks import COLUMNS, SHARD, VOCAB, arguments

from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_stats import vocab_stats

pytestmark = pytest.mark.usefixtures("device")

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    # dtype
    (
        {"student_logits": torch.zeros(6, COLUMNS, dtype=torch.float64)},
        TypeError,
        "student_logits must be float32, bfloat16 or float16, got Double",
    ),
    (
        {"teacher_logits": torch.zeros(6, COLUMNS, dtype=torch.bfloat16)},
        TypeError,
        "teacher_logits must have the student's dtype Float, got BFloat16",
    ),
    (
        {"labels": torch.zeros(6, dtype=torch.int32)},
        TypeError,
        "labels must be int64, got Int",
    ),
    # shape and memory
    (
        {"student_logits": torch.zeros(2, 3, COLUMNS)},
        ValueError,
        "student_logits must be [N, V_local], got shape [2, 3, 130]",
    ),
    (
        {"student_logits": torch.zeros(6, COLUMNS + 1)},
        ValueError,
        "the shard describes 130 local columns, student_logits have shape (6, 131)",
    ),
    (
        {"student_logits": torch.zeros(COLUMNS, 6).T},
        ValueError,
        "student_logits must be contiguous along the vocabulary (stride 1), got strides [1, 6]",
    ),
    (
        {"teacher_logits": torch.zeros(5, COLUMNS)},
        ValueError,
        "teacher_logits must have the student's 6 rows, got shape [5, 130]",
    ),
    (
        {"teacher_logits": torch.zeros(6, VOCAB - 1)},
        ValueError,
        "the student's holds 127 of the 127 real ones and the teacher's 126",
    ),
    (
        {"labels": torch.zeros(7, dtype=torch.int64)},
        ValueError,
        "labels must be a contiguous [6], one global token id per row of the logits, got shape [7]",
    ),
    # device
    (
        {"student_logits": torch.zeros(6, COLUMNS, device="meta")},
        ValueError,
        "student_logits are on meta, this build has kernels for cpu",
    ),
    # values
    (
        {"labels": torch.tensor([0, 1, VOCAB, 3, 4, 5])},
        ValueError,
        "labels[2] = 127 is outside the vocabulary of 127 token ids",
    ),
    (
        {"labels": torch.tensor([0, -1, 2, 3, 4, 5])},
        ValueError,
        "labels[1] = -1 is outside the vocabulary of 127 token ids",
    ),
    *(
        (
            {"temperature": value},
            ValueError,
            f"temperature must be a finite number above 0 (in float32), got {shown}",
        )
        for value, shown in [
            (0.0, "0"),
            (-1.0, "-1"),
            (math.nan, "nan"),
            (math.inf, "inf"),
            (1e-39, "1e-39"),  # its inverse is not a float32
        ]
    ),
    (
        {"power_exponent": 0.0},
        ValueError,
        "power_exponent must be a finite number above 0 (in float32), got 0",
    ),
    # what goes together
    ({"features": Feature.TEACHER | (1 << 32)}, ValueError, "or for unknown ones"),
    (
        {"features": Feature.FORWARD_KL, "teacher_logits": None},
        ValueError,
        "features 4 asks for statistics of a teacher without",
    ),
    ({"teacher_logits": None}, ValueError, "got the feature without teacher_logits"),
    (
        {"features": Feature.LABEL},
        ValueError,
        "got teacher_logits without the feature",
    ),
    ({"labels": None}, ValueError, "the LABEL feature needs labels, got None"),
    (
        {"teacher_logits": torch.zeros(6, COLUMNS, requires_grad=True)},
        ValueError,
        "teacher_logits require a gradient, but the teacher is a constant here",
    ),
    (
        {
            "student_logits": torch.zeros(6, COLUMNS, requires_grad=True),
            "inplace_backward": True,
        },
        ValueError,
        "inplace_backward would overwrite student_logits, which are a leaf tensor",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_refuses(
    changes: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    if device == "cuda" and "outside the vocabulary" in message:
        pytest.skip("the host does not wait for the device, so it cannot look at labels there")
    with pytest.raises(error, match=f"^vocab_stats: .*{re.escape(message)}") as raised:
        vocab_stats(**arguments(**changes))
    assert "\n" not in str(raised.value)


def test_inplace_refuses_a_view_of_a_leaf() -> None:
    parameter = torch.zeros(2, 3, COLUMNS, requires_grad=True)
    with pytest.raises(ValueError, match="or a view of one"):
        vocab_stats(
            parameter.flatten(0, 1), shard=SHARD, features=Feature(0), inplace_backward=True
        )


def test_refuses_what_is_no_shard() -> None:
    with pytest.raises(TypeError, match="shard must be a VocabShard, got NoneType"):
        vocab_stats(**arguments(shard=None))


def test_refuses_meta_tensors_beside_real_ones() -> None:
    logits = torch.zeros(6, COLUMNS)
    for change in ({"teacher_logits": logits.to("meta")}, {"labels": torch.zeros(6).to("meta")}):
        message = f"must be on {logits.device} like student_logits, got meta"
        with pytest.raises(ValueError, match=message):
            vocab_stats(logits, **change, shard=SHARD, features=Feature(0))


LEFT, RIGHT = slice(0, COLUMNS), slice(COLUMNS - 1, 2 * COLUMNS - 1)


@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [
        pytest.param((slice(0, 6), LEFT), (slice(0, 6), LEFT), id="the same tensor"),
        pytest.param((slice(0, 6), LEFT), (slice(1, 7), LEFT), id="one row on"),
        pytest.param((slice(1, 7), LEFT), (slice(0, 6), LEFT), id="one row before"),
        pytest.param((slice(0, 6), LEFT), (slice(0, 6), RIGHT), id="last column is the first"),
        pytest.param((slice(0, 6), RIGHT), (slice(0, 6), LEFT), id="first column is the last"),
        pytest.param((slice(0, 6), LEFT), (slice(0, 12, 2), LEFT), id="every second row"),
    ],
)
def test_inplace_refuses_a_teacher_in_the_memory_of_the_student(
    of_student: tuple[slice, slice], of_teacher: tuple[slice, slice]
) -> None:
    """Its logits would be overwritten while, or before, they are read."""
    memory = torch.zeros(12, 2 * COLUMNS - 1, requires_grad=True) * 1.0
    logits = {
        "student_logits": memory[of_student],
        "teacher_logits": memory.detach()[of_teacher],
    }
    with pytest.raises(ValueError, match="would overwrite teacher_logits, which lie in the memory"):
        vocab_stats(**arguments(**logits, inplace_backward=True))
    vocab_stats(**arguments(**logits))
