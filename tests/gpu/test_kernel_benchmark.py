"""benchmarks/kernels in the executor: its checks against float64 pass, and fail where they should.

The times are the stand-in runtime's, a millisecond each.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ptx
import pytest
from compiler import Compiler, run_tool
from sass.hardware import GPUS
from stand_in_runtime import StandInRuntime

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "benchmarks" / "kernels" / "main.cu",
    *sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
]
FAMILIES = {
    "stats": 5, "merge": 1, "loss": 1, "gradient": 4, "fdiv": 4, "fdiv_gradient": 4,
    "fdiv_gradient_general": 4, "fdiv_gradient_softened": 4, "scale_rows": 1, "fused": 2,
}  # fmt: skip
L2_CACHE_SIZE = 38
SMALL_L2 = 4096  # of the stand-in: what is read between two times is executed, too

Main = Callable[..., int]


@pytest.fixture(scope="module")
def main(
    runtime: StandInRuntime, nvcc: Compiler, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Main]:
    """Runs the program: its options, and perhaps options of ptx.Device.launch."""
    folder = tmp_path_factory.mktemp("kernel_benchmark")
    path = folder / "kernel_benchmark.so"
    run_tool([
        str(nvcc.nvcc), "-std=c++20", "-ftz=true", "-shared", "-Xcompiler", "-fPIC",
        # PTX alone, which is kept: the host code and the executor get the same kernels.
        "-gencode", "arch=compute_90a,code=compute_90a", "--keep", "--keep-dir", str(folder),
        "--cudart", "none", "-Xlinker", str(runtime.path), *map(str, SOURCES), "-o", str(path),
    ])  # fmt: skip
    modules = [ptx.parse((folder / f"{source.stem}.ptx").read_text()) for source in SOURCES]
    library = runtime.load(path, *modules)
    runtime.library.stand_in_set_attribute(L2_CACHE_SIZE, SMALL_L2)

    def run(*options: str, **launch: Any) -> int:
        words = [b"kernel_benchmark", *(word.encode() for word in options)]
        device = ptx.Device()
        with runtime.using(device, **launch):
            status = library.main(len(words), (ctypes.c_char_p * len(words))(*words))
        assert device.findings == []
        return status

    yield run
    runtime.library.stand_in_set_attribute(L2_CACHE_SIZE, runtime.attributes[L2_CACHE_SIZE])


@pytest.mark.parametrize(
    ("dtype", "tokens", "columns"),
    [
        pytest.param("bf16", 3, 1003, id="rows without alignment"),
        pytest.param("fp32", 1, 20_000, id="one row in parts and in a cluster"),
    ],
)
def test_all_kernels_are_right(
    main: Main, tmp_path: Path, dtype: str, tokens: int, columns: int
) -> None:
    file = tmp_path / "out.json"
    sizes = ("--tokens", str(tokens), "--columns", str(columns), "--dtype", dtype)
    assert main(*sizes, "--repetitions", "1", "--json", str(file)) == 0, file.read_text()
    device, *rows = map(json.loads, file.read_text().splitlines())
    assert device["device"].startswith("stand-in (sm_90), CUDA driver ")
    assert device["peak_gb_per_second"] == pytest.approx(3352, rel=1e-3)
    families = [row["kernel"].split("/")[0] for row in rows]
    assert {name: families.count(name) for name in families} == FAMILIES
    for row in rows:
        assert row["us_quartiles"] == [1000, 1000, 1000]
        assert row["copy_share"] == 1
        assert row["gb_per_second"] == pytest.approx(row["bytes"] / 1e6, rel=1e-4)


def test_fewer_columns_than_shards(main: Main) -> None:
    sizes = ("--tokens", "2", "--columns", "5", "--dtype", "fp16")
    assert main(*sizes, "--kernels", "merge,fused/hybrid", "--repetitions", "1") == 0


def test_a_wrong_kernel_is_not_timed(main: Main, capfd: pytest.CaptureFixture[str]) -> None:
    """Exponentials that are off by a few percent."""
    sizes = ("--tokens", "1", "--columns", "1003", "--kernels", "stats/label")
    assert main(*sizes, noise=1e5) == 1
    line = capfd.readouterr().out.splitlines()[2]
    assert "stats/label" in line
    assert "WRONG: token 0: student_sum is " in line


def test_a_shape_beyond_the_memory_is_skipped_with_the_reason(
    main: Main, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main("--tokens", "100000", "--columns", "100000") == 1
    assert "skipped: needs 114" in capfd.readouterr().out


def test_without_a_gpu_it_prints_the_roofline(
    main: Main, runtime: StandInRuntime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of every kernel that it would have measured, from the bytes that it would have reported."""
    file = tmp_path / "out.json"
    sizes = ("--tokens", "3", "--columns", "1003", "--dtype", "bf16", "--json", str(file))
    runtime.library.stand_in_set_device_count(0)
    try:
        assert main(*sizes) == 0
    finally:
        runtime.library.stand_in_set_device_count(1)
    shown = capfd.readouterr().out
    assert shown.startswith("no GPU here (an error of the stand-in runtime): nothing is measured\n")
    assert "static, not measured" in shown
    head, *rows = map(json.loads, file.read_text().splitlines())
    assert (head["device"], head["measured"]) == (None, False)
    bandwidths = {gpu["name"]: gpu["gb_per_second"] for gpu in head["gpus"]}
    sizes_of = {gpu["name"]: gpu["num_sms"] for gpu in head["gpus"]}
    assert bandwidths == pytest.approx(
        {k: 1e3 * gpu.bandwidth for k, gpu in GPUS.items()}, rel=1e-3
    )
    assert sizes_of == {name: gpu.sms for name, gpu in GPUS.items()}
    families = [row["kernel"].split("/")[0] for row in rows]
    assert {name: families.count(name) for name in families} == FAMILIES
    for row in rows:
        for name, time in row["roofline"].items():
            assert time["us"] == pytest.approx(time["bytes"] / bandwidths[name] / 1e3, rel=1e-4)
