"""Which of the tests of the kernels' values notice mutants of a kernel: those that run the most of
its instructions come first, for most mutants end there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import test_kernel_fdiv as fdiv
import test_kernel_fused as fused
import test_kernel_gradient as gradient
import test_kernel_merge as merge
import test_kernel_scale_rows as scale_rows
import test_kernel_statistics as statistics

from .contract import (
    ALL_FEATURES,
    FORMS,
    FP32,
    LOGIT_TYPES,
    Divergence,
    Feature,
    Form,
    LogitType,
)
from .launchers import Launchers
from .objectives import OBJECTIVES

# which statistics there are
LESS = (
    Feature.LABEL | Feature.STUDENT_ENTROPY, Feature.TEACHER,
    *(ALL_FEATURES & ~feature for feature in Feature if feature != Feature.TEACHER),
)  # fmt: skip
Check = Callable[[Launchers], Any]
# ... and what runs paths of its own
SHAPES = ("whole rounds", "rounds and more than half a round", "misaligned whole rounds",
          "misaligned", "three warps, three parts", "rounds and a tail", "one more",
          "teacher misaligned", "student misaligned", "part of a vector")  # fmt: skip


def checks_of(kernel: str) -> list[Check]:
    """kernel: its mangled name."""
    return [partial(_call, check, arguments) for check, *arguments in _tests(kernel)]


def _call(check: Callable[..., Any], arguments: list[Any], launchers: Launchers) -> None:
    check(launchers, *arguments)


def family(kernel: str) -> str:
    """The name of the function or template."""
    found = re.search(r"\d([a-z_]+_kernel)", kernel)
    assert found is not None, kernel
    return found[1]


def _argument(kernel: str, pattern: str) -> int:
    found = re.search(pattern, kernel)
    assert found is not None, kernel
    return int(found[1])


def _dtype(kernel: str) -> LogitType:
    return next((d for d in LOGIT_TYPES if f"kernelI{d.mangled}" in kernel), FP32)


def _cases(cases: Iterable[tuple[Any, ...]], first: str) -> list[tuple[Any, ...]]:
    """That of this shape comes first."""
    return sorted(cases, key=lambda case: case[0] != first)


def _tests(kernel: str) -> list[tuple[Any, ...]]:
    dtype = _dtype(kernel)
    match family(kernel):
        case "vocab_stats_kernel":
            return _statistics(dtype, Feature(_argument(kernel, r"Lj(\d+)E")))
        case "vocab_gradient_kernel":
            cases = _cases(gradient.CASES, "one more")
            return [
                *((gradient.test_values, dtype, *case) for case in cases),
                (gradient.test_every_element, dtype),
                *((gradient.test_features, dtype, features) for features in LESS),
                (gradient.test_rows_without_weight_are_zero, dtype),
                (gradient.test_aligned_rows_are_read_by_vectors, dtype),
                (gradient.test_nan_shows,),
                (gradient.test_shards,),
                (gradient.test_every_end, dtype),
            ]
        case "fdiv_kernel" | "fdiv_gradient_kernel":
            return _fdiv(dtype, FORMS[_argument(kernel, r"FDivergenceE(\d)E")])
        case "fused_kernel":
            return _fused(dtype, Feature(_argument(kernel, r"Lj(\d+)E")))
        case "merge_kernel" if "ILb0E" in kernel:
            return [
                (statistics.test_values, dtype, ALL_FEATURES, "three warps, three parts"),
                (statistics.test_features_within_an_instance, Feature.TEACHER | Feature.POWER),
                (statistics.test_values, dtype, Feature.LABEL, "three warps, three parts"),
            ]
        case "merge_kernel":
            return [
                *((merge.test_values, cuts, {}) for cuts in reversed(merge.CUTS.values())),
                (merge.test_many_tokens,),
                (merge.test_some_features, Feature.LABEL | Feature.STUDENT_ENTROPY),
                (merge.test_some_features, Feature.TEACHER | Feature.FORWARD | Feature.POWER),
            ]
        case "loss_kernel":
            return [(merge.test_loss, objective, {}) for objective in OBJECTIVES.values()]
        case "add_parts_kernel":
            case = ("three warps, three parts", False, 3)
            return [
                (fdiv.test_values, FP32, FORMS[Divergence.SKEW_REVERSE], *case),
                (fdiv.test_many_parts,),
            ]
        case "scale_rows_kernel":
            return [
                (scale_rows.test_values, *case.values)  # type: ignore[attr-defined]
                for case in reversed(scale_rows.cases())
                if case.values[0] == dtype  # type: ignore[attr-defined]
            ]
    raise KeyError(f"no tests are chosen for {kernel}")


def _statistics(dtype: LogitType, features: Feature) -> list[tuple[Any, ...]]:
    return [
        *((statistics.test_values, dtype, features, name) for name in SHAPES),
        (statistics.test_every_element, dtype, features),
        *((statistics.test_logits_are_read_once, dtype, features, tail) for tail in (0, 3)),
        (statistics.test_any_schedule, dtype, features),
        (statistics.test_nan_shows, features),
        (statistics.test_fewest_features, dtype, features),
        (statistics.test_every_end, dtype, features),
    ]


def _fdiv(dtype: LogitType, form: Form) -> list[tuple[Any, ...]]:
    return [
        *(
            (fdiv.test_values, dtype, form, *case)
            for case in _cases(fdiv.CASES, "three warps, three parts")
        ),
        (fdiv.test_every_element, dtype, form),
        (fdiv.test_shards, dtype, form.kind),
        (fdiv.test_a_row_is_written_once, dtype, False),
        (fdiv.test_rows_without_weight_are_zero, dtype, form),
        *((_fdiv_features, dtype, form, features) for features in LESS[1:]),
        *((fdiv.test_mixtures_near_one_model, form.kind, skew) for skew in (0.001, 0.999)),
        *((fdiv.test_exponents, dtype, exponents) for exponents in fdiv.OTHER_EXPONENTS),
        (fdiv.test_nan_shows, form),
        (fdiv.test_aligned_rows_are_read_by_vectors, dtype, form),
        (fdiv.test_every_end, dtype, form),
    ]


def _fdiv_features(launchers: Launchers, dtype: LogitType, form: Form, features: Feature) -> None:
    fdiv.check_form(launchers, dtype, form, "misaligned", features=features)


def _fused(dtype: LogitType, instance: Feature) -> list[tuple[Any, ...]]:
    return [
        (fused.test_instance, dtype, instance, "whole rounds"),
        (fused.test_instance, dtype, instance, "three warps, three parts"),
        (fused.test_any_schedule, dtype, instance),
        (fused.test_fewest_features, dtype, instance),
        (fused.test_logits_are_read_once, dtype, instance),
        *((fused.test_objectives, dtype, objective) for objective in OBJECTIVES.values()),
        *((fused.test_shapes, dtype, *case) for case in fused.CASES),
        (fused.test_every_element, dtype, instance),
        (fused.test_nan_shows, instance),
        (fused.test_every_end, dtype, instance),
    ]
