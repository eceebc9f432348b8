"""The static check: what it reads from a cubin, and that each kind of limit can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compiler import Compiler
from sample_problem import FLAGS
from sass import (
    Figures,
    SassInstruction,
    SassKernel,
    ToolsMissingError,
    check,
    disassemble,
    measure,
    read_limits,
)
from sass.disassembly import Resources

KERNELS = Path(__file__).parent / "kernels"
SAMPLE = KERNELS / "sample_instances.cu"
LIMITS = KERNELS / "sample_limits.toml"
Measure = Callable[..., tuple[dict[str, Figures], list[str]]]


@pytest.fixture
def measured(nvcc: Compiler, tmp_path: Path) -> Measure:
    """Figures by the kernel's name, and breaches, of a source under a limits file."""

    def measure(source: Path, arch: str = "sm_90a", flags: tuple[str, ...] = FLAGS,
                limits: str | None = None) -> tuple[dict[str, Figures], list[str]]:  # fmt: skip
        file = LIMITS
        if limits is not None:
            file = tmp_path / "limits.toml"
            file.write_text(limits)
        try:
            report = check([nvcc.cubin(source, arch, flags)], read_limits(file))
        except ToolsMissingError as missing:
            pytest.skip(str(missing))
        return {f.kernel: f for f in report.figures}, report.breaches

    return measure


def one(figures: dict[str, Figures], part: str) -> Figures:
    (found,) = (f for name, f in figures.items() if part in name)
    return found


def test_sample_keeps_its_limits(measured: Measure) -> None:
    figures, breaches = measured(SAMPLE)
    assert breaches == []
    stats, gradient = one(figures, "sample_stats"), one(figures, "sample_gradient")
    assert (stats.pairs, stats.loaded_bytes, stats.stored_bytes) == (8, 4, 0)
    assert (gradient.pairs, gradient.loaded_bytes, gradient.stored_bytes) == (8, 4, 2)
    assert stats.opcodes["MUFU.EX2"] == 2.25  # 16 values and 2 to rescale, for 8 pairs
    assert stats.opcodes["LDG"] == 2 / 8
    assert stats.rooflines["H100"].blocks_per_sm == 8
    assert set(stats.rooflines) == {"H100", "H200"}


def test_special_functions_bound_the_sample_on_b200(measured: Measure) -> None:
    """The rate of exponentials did not grow with the bandwidth."""
    figures, _ = measured(SAMPLE, "sm_100a")
    roofline = one(figures, "sample_stats").rooflines["B200"]
    assert roofline.tightest == "mufu"
    assert roofline.margin < 1


def test_too_few_registers_spill(measured: Measure) -> None:
    figures, breaches = measured(SAMPLE, flags=(*FLAGS, "-DSAMPLE_REGISTERS=24"))
    assert one(figures, "sample_stats").spills > 0
    assert any("spills = " in breach for breach in breaches)


def test_narrow_loads(measured: Measure) -> None:
    limits = """
        [[kernel]]
        name = "narrow_sum"
        threads = 256
        pair_bytes = 4
        [kernel.limits]
        "in_flight.H100" = { min = 1.0, reason = "Little's law" }
    """
    figures, breaches = measured(KERNELS / "narrow.cu", limits=limits)
    assert one(figures, "narrow_sum").narrow == 2
    assert ["narrow = 2 > 0" in breaches[1], "in_flight.H100" in breaches[0]] == [True, True]


def test_breach_says_the_reason(measured: Measure) -> None:
    limits = LIMITS.read_text().replace("max = 32", "max = 20")
    _, breaches = measured(SAMPLE, limits=limits)
    assert len(breaches) == 2
    assert breaches[0].endswith("registers = 32 > 20 (eight blocks of 256 threads for each SM)")


def test_renamed_kernel_is_a_breach(measured: Measure) -> None:
    limits = LIMITS.read_text().replace("sample_", "other_")
    _, breaches = measured(SAMPLE, limits=limits)
    assert len(breaches) == 1
    assert "none of its kernels has limits" in breaches[0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("registers = { max = 32 }", "and a reason"),
        ('registers = { most = 32, reason = "?" }', "expected min or max"),
    ],
)
def test_limits_file_with_a_mistake(tmp_path: Path, limit: str, message: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(
        f'[[kernel]]\nname = "k"\nthreads = 32\npair_bytes = 4\n[kernel.limits]\n{limit}\n'
    )
    with pytest.raises(ValueError, match=message):
        read_limits(file)


def test_unknown_figure(measured: Measure) -> None:
    limits = LIMITS.read_text().replace("stored_bytes =", "stored =")
    with pytest.raises(ValueError, match="unknown figure 'stored'"):
        measured(SAMPLE, limits=limits)


def test_every_kernel_is_read(nvcc: Compiler) -> None:
    try:
        kernels = disassemble(nvcc.cubin(SAMPLE, flags=FLAGS))
    except ToolsMissingError as missing:
        pytest.skip(str(missing))
    assert len(kernels) == 4
    assert all(kernel.target == "sm_90a" and len(kernel.code) > 100 for kernel in kernels)


def gradient_loops(*sizes: int) -> SassKernel:
    """A loop of so many instructions each, one after another."""
    kernel = SassKernel("k", "sm_90a", Resources(32, 0, 0, 0))
    for number, size in enumerate(sizes):
        kernel.labels[f".L_{number}"] = len(kernel.code)
        kernel.code += [
            *[SassInstruction("LDG.E.128", "R0")] * 2,
            *[SassInstruction("MUFU.EX2", "R0, R0")] * (size - 4),
            SassInstruction("STG.E.128", "R0"),
            SassInstruction("BRA", f"`(.L_{number})"),
        ]
    return kernel


def test_loops_by_cost() -> None:
    kernel = gradient_loops(30, 20, 40)
    figures = [
        measure(kernel, threads=256, pair_bytes=4, loop_place=(place, 3)) for place in (1, 2, 3)
    ]
    assert [f.instructions * f.pairs for f in figures] == [20, 30, 40]
    both = measure(kernel, threads=256, pair_bytes=4, loop_place=(3, 3), both_loops=True)
    assert (both.pairs, both.instructions * both.pairs) == (16, 70)
    with pytest.raises(ValueError, match="expected 2 loops for a gradient, got 3"):
        measure(kernel, threads=256, pair_bytes=4, loop_place=(1, 2))


def test_families_and_limits_for_each_gpu(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("""
        [family.sweep]
        threads = 256
        pair_bytes = 4
        [family.sweep.limits]
        registers = { max = 16, reason = "all blocks" }
        [[kernel]]
        family = "sweep"
        name = "k*"
        limits.margin = { min = { H100 = 1.0, H200 = 1e3, B200 = 1e3 }, reason = "memory" }
    """)
    (entry,) = read_limits(file)
    kernel = gradient_loops(20)
    assert entry.applies_to(kernel)
    assert [b.split(": ")[1].split(" = ")[0] for b in entry.breaches(entry.figures(kernel))] == [
        "registers", "margin.H200",
    ]  # fmt: skip


def test_kernel_without_limits_is_reported(nvcc: Compiler) -> None:
    try:
        report = check([nvcc.cubin(SAMPLE, flags=FLAGS)], read_limits(LIMITS))
    except ToolsMissingError as missing:
        pytest.skip(str(missing))
    assert len(report.without_limits) == 2
