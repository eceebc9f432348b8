"""The executor's arithmetic against the host's: the same expressions through nvcc and g++."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ptx
import pytest
from compiler import Compiler, run_tool

KERNELS = Path(__file__).parent / "kernels"
COUNT = 1 << 12
SPECIAL = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-42, -1e-45, 3.4e38, 2.0**-126, 0.5, 65504,
           65520, 1e-8, 3.39e38, -3.4028235e38, 1.00390625, 5.9604645e-08]  # fmt: skip
# sm_80 has no bf16 add and multiply: nvcc writes them as fma
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100a"]
# floats between: the functions' own errors, as CUDA's manual has them
CLOSE_ULP = {"__expf": 60, "tanhf": 4, "expm1f": 3}


@dataclass
class Inputs:
    floats: tuple[np.ndarray, np.ndarray, np.ndarray]
    integers: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (*self.floats, *self.integers)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    rng = np.random.default_rng(5)

    def floats() -> np.ndarray:
        wide = rng.normal(size=COUNT) * np.exp2(rng.integers(-140, 120, COUNT))
        x = wide.astype(np.float32)
        x[: COUNT // 4] = rng.choice(np.array(SPECIAL, np.float32), COUNT // 4)
        x[COUNT // 4 : COUNT * 3 // 4] = rng.normal(size=COUNT // 2) * 4
        return rng.permutation(x)

    def integers() -> np.ndarray:
        x = rng.integers(-(2**31), 2**31, COUNT).astype(np.int32)
        x[: COUNT // 4] = rng.integers(-40, 40, COUNT // 4)
        x[:6] = [0, -1, 1, 2**31 - 1, -(2**31), 31]
        return rng.permutation(x)

    return Inputs((floats(), floats(), floats()), (integers(), integers(), integers()))


@pytest.fixture(scope="module")
def host(nvcc: Compiler) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compare with")
    library = nvcc.folder / "expressions_host.so"
    # -fwrapv: integers overflow as on the device; -ffp-contract=off: fma only where it is written
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-fwrapv", "-ffp-contract=off"]
    source = str(KERNELS / "expressions_host.cpp")
    run_tool([compiler, *flags, "-frounding-math", f"-I{nvcc.include}", "-o", str(library), source])
    return ctypes.CDLL(str(library))


def names(host: ctypes.CDLL, group: str) -> list[str]:
    function = getattr(host, f"{group}_names")
    function.restype = ctypes.c_char_p
    return function().decode().splitlines()


def on_host(host: ctypes.CDLL, group: str, inputs: Inputs, dtype: type) -> np.ndarray:
    out: np.ndarray = np.empty((len(names(host, group)), COUNT), dtype)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*inputs.arrays, out)]
    getattr(host, group)(*pointers, COUNT)
    return out


def on_device(module: ptx.Module, group: str, inputs: Inputs, expected: np.ndarray) -> np.ndarray:
    device = ptx.Device()
    arrays = [device.upload(x, f"input {k}") for k, x in enumerate(inputs.arrays)]
    out = device.allocate(expected.shape, expected.dtype, "out")
    device.launch(module, group, -(-COUNT // 256), 256, [*arrays, out, COUNT])
    assert device.findings == []
    return out.read()


def ordinal(x: np.ndarray) -> np.ndarray:
    """Floats numbered in order, so that a difference counts the floats between."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(2**31) - bits, bits)


def distance(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """In floats; any NaN equals any NaN, and -0 differs from +0."""
    same = (np.isnan(expected) & np.isnan(got)) | (expected.view(np.int32) == got.view(np.int32))
    return np.where(same, 0, np.maximum(1, np.abs(ordinal(expected) - ordinal(got))))


def differences(labels: list[str], wrong: np.ndarray, expected: np.ndarray, got: np.ndarray,
                inputs: Inputs) -> list[str]:  # fmt: skip
    lines = []
    for k in np.flatnonzero(wrong.any(1)):
        lane = int(np.flatnonzero(wrong[k])[0])
        values = ", ".join(f"{n}={x[lane]!r}" for n, x in zip("abcxyz", inputs.arrays, strict=True))
        lines.append(
            f"{labels[k]}: {int(wrong[k].sum())} of {COUNT} differ, first at {values}:"
            f" host {expected[k, lane]!r}, executor {got[k, lane]!r}"
        )
    return lines


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("group", "dtype"), [("exact_float", np.float32), ("exact_integer", np.int32)]
)
def test_exact(nvcc: Compiler, host: ctypes.CDLL, inputs: Inputs, arch: str, group: str,
               dtype: type) -> None:  # fmt: skip
    expected = on_host(host, group, inputs, dtype)
    got = on_device(nvcc.ptx(KERNELS / "expressions.cu", arch), group, inputs, expected)
    wrong = expected != got if dtype is np.int32 else distance(expected, got) > 0
    assert differences(names(host, group), wrong, expected, got, inputs) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_library_functions(nvcc: Compiler, host: ctypes.CDLL, inputs: Inputs, arch: str) -> None:
    expected = on_host(host, "close", inputs, np.float32)
    got = on_device(nvcc.ptx(KERNELS / "expressions.cu", arch), "close", inputs, expected)
    labels = names(host, "close")
    allowed = np.array([next((u for f, u in CLOSE_ULP.items() if f in n), 2) for n in labels])
    wrong = distance(expected, got) > allowed[:, None]
    assert differences(labels, wrong, expected, got, inputs) == []
