"""compare_bits.py with the CPU operators in the GPU's place: differences are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import compare_bits
import numpy as np
import pytest
from compare_bits import STAND_IN, compare, compare_all
from vocab_kernels.contract import BF16, Divergence, SoftTerm, Weighting
from vocab_kernels.launch_set import Arrays, Launch, launch_set
from vocab_kernels.launchers import Launchers
from vocab_kernels.objectives import Objective
from vocab_kernels.problem import IGNORED, Problem
from vocab_kernels.rows import ordinary

torch = pytest.importorskip("torch", reason="the CPU operators need it")
ops = pytest.importorskip("bgkd_megatron.ops", reason="the CPU operators are not built")

PROBLEM = Problem(BF16, 203, (ordinary, ordinary, ordinary), (0.0, 0.5, IGNORED))
OBJECTIVE = Objective(SoftTerm.FORWARD, Weighting.SHANNON)
LAUNCHES = {
    launch.kernel: launch
    for launch in (
        Launch("statistics", PROBLEM),
        Launch("merge", PROBLEM),
        Launch("loss", PROBLEM, objective=OBJECTIVE),
        Launch("gradient", PROBLEM),
        Launch("divergence", PROBLEM, Divergence.JENSEN_SHANNON),
        Launch("gradient with divergence", PROBLEM, Divergence.TOTAL_VARIATION),
        Launch("fused loss", PROBLEM, objective=OBJECTIVE),
        Launch("scale rows", PROBLEM),
    )
}


def on_operators(launch: Launch) -> Arrays:
    return launch.on_operators(torch, ops, "cpu")


@pytest.mark.parametrize("kernel", LAUNCHES)
def test_executor_and_operators_agree(launchers: Launchers, kernel: str) -> None:
    launch = LAUNCHES[kernel]
    agreement = compare(launch, launch.on_executor(launchers, STAND_IN), on_operators(launch))
    assert agreement.agrees, agreement
    assert agreement.exact + agreement.others > 0
    if kernel != "divergence":
        assert agreement.exact_equal == agreement.exact > 0


def last_bit(arrays: Arrays, name: str, index: tuple[int, int]) -> None:
    values = arrays[name]
    values.view(np.uint32 if values.itemsize == 4 else np.uint16)[index] ^= 1


@pytest.mark.parametrize(
    ("kernel", "plant"),
    [
        pytest.param("statistics", lambda a: last_bit(a, "statistics", (0, 1)), id="a maximum"),
        pytest.param("statistics", lambda a: last_bit(a, "statistics", (4, 1)), id="at the label"),
        pytest.param("merge", lambda a: last_bit(a, "statistics", (7, 0)), id="an argmax"),
        pytest.param("gradient", lambda a: last_bit(a, "gradient", (2, 9)), id="an ignored row"),
        pytest.param("scale rows", lambda a: last_bit(a, "rows", (0, 202)), id="a scaled logit"),
    ],
)
def test_one_bit_is_seen_where_all_must_agree(kernel: str, plant: Callable[[Arrays], None]) -> None:
    launch = LAUNCHES[kernel]
    planted = {name: values.copy() for name, values in on_operators(launch).items()}
    plant(planted)
    agreement = compare(launch, on_operators(launch), planted)
    assert not agreement.agrees
    assert agreement.exact_equal == agreement.exact - 1
    assert agreement.others_equal == agreement.others


@pytest.mark.parametrize(
    ("name", "factor"), [("losses", 1.0001), ("gradient", 1.02), ("losses", np.nan)]
)
def test_a_difference_beyond_what_approximations_lose_is_seen(name: str, factor: float) -> None:
    launch = LAUNCHES["fused loss"]
    found, planted = on_operators(launch), on_operators(launch)
    decoded = BF16.decode(planted[name]) if name == "gradient" else planted[name]
    changed = decoded.copy()
    changed[0] *= factor
    planted[name] = BF16.encode(changed) if name == "gradient" else changed
    agreement = compare(launch, found, planted)
    assert agreement.largest > 1
    assert not agreement.agrees
    assert agreement.exact_equal == agreement.exact
    assert compare_bits.line(agreement).endswith("DIFFERS")


def test_the_report_counts_bits_and_names_what_differs(
    launchers: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = [LAUNCHES["merge"], LAUNCHES["scale rows"], replace(LAUNCHES["merge"])]
    monkeypatch.setattr(compare_bits, "launch_set", lambda: launches)
    results = [on_operators(launch) for launch in launches]
    last_bit(results[1], "rows", (1, 1))
    results[2]["statistics"] = results[2]["statistics"][:, :2]
    first, second, third = compare_all(launchers, STAND_IN, results)
    assert "203 of 203" not in compare_bits.line(second)
    assert third.problem == "statistics[0] have shapes (3,) and (2,)"
    summary = compare_bits.summary([first, second, third])
    assert f"of those that must, {first.exact + 608} of {first.exact + 609};" in summary
    assert summary.endswith(f"2 DIFFER: {second.launch}, {third.launch}")


def test_every_kernel_is_launched_in_every_type() -> None:
    found = {(launch.kernel, launch.problem.dtype.name) for launch in launch_set()}
    assert found == {(kernel, name) for kernel in LAUNCHES for name in ("fp32", "bf16", "fp16")}
