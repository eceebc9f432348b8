"""The test's side of the executor: arrays, arguments, kernels by name, launches in chunks."""

from __future__ import annotations

import numpy as np
import ptx
import pytest
from handwritten import HEADER, kernel

STORE = "mad.lo.u64 %d1, %d0, 4, %d8; st.global.u32 [%d1], %r0;"


def test_rows_with_padding() -> None:
    device = ptx.Device()
    x = np.arange(12, dtype=np.int16).reshape(3, 4)
    array = device.upload(x, "x", row_stride=7, start=2)
    assert array.address % 256 == 2
    np.testing.assert_array_equal(array.read(), x)
    assert array.written().all()
    array.write(x + 1)
    np.testing.assert_array_equal(array.read(), x + 1)


def test_what_a_kernel_has_written() -> None:
    device = ptx.Device()
    out = device.allocate((2, 48), np.uint32, "out", row_stride=64)
    report = device.launch(kernel(STORE, 1), "k", 1, 32, [out])
    assert report.findings == []
    expected = np.zeros((2, 48), bool)
    expected[0, :32] = True
    np.testing.assert_array_equal(out.written(), expected)
    device.launch(kernel(STORE, 1), "k", 1, 64, [out])  # threads 48 to 63 are in the padding
    assert [finding.kind for finding in device.findings] == ["out of bounds"]


@pytest.mark.parametrize("seed", [0, 1])
def test_chunks_race_with_each_other(seed: int) -> None:
    body = "st.global.u32 [%d8], %r1;"
    device = ptx.Device()
    out = device.allocate(1, np.uint32, "out")
    one_thread = "setp.ne.u32 %p0, %r0, 0; and.b32 %r4, %r0, 31; setp.ne.u32 %p0, %r4, 0; @%p0 ret;"
    device.launch(kernel(one_thread + body, 1), "k", 4, 32, [out], max_lanes=32, seed=seed)
    assert [finding.kind for finding in device.findings] == ["race"]


def test_variables_of_the_module_keep_their_values() -> None:
    module = ptx.parse(
        HEADER + ".visible .global .align 4 .u32 count = 5;\n"
        ".visible .entry k(.param .u64 k_0) { .reg .b32 %r<2>; .reg .b64 %d<2>;"
        "ld.param.u64 %d0, [k_0]; ld.global.u32 %r0, [count]; add.u32 %r0, %r0, 1;"
        "mov.u32 %r1, %tid.x; .reg .pred %p; setp.ne.u32 %p, %r1, 0; @%p ret;"
        "st.global.u32 [count], %r0; st.global.u32 [%d0], %r0; ret; }"
    )
    device = ptx.Device()
    out = device.allocate(1, np.uint32, "out")
    for expected in (6, 7):
        device.launch(module, "k", 1, 32, [out])
        assert out.read()[0] == expected


def test_kernels_by_name() -> None:
    text = HEADER + "".join(f".visible .entry sum_{n}() {{ ret; }}\n" for n in ("a", "ab"))
    module = ptx.parse(text)
    assert module.kernel("ab").name == "sum_ab"
    assert module.kernel("sum_a").name == "sum_a"
    with pytest.raises(KeyError, match="2 kernels match 'sum'"):
        module.kernel("sum")
    with pytest.raises(KeyError, match="0 kernels match 'mean'"):
        module.kernel("mean")


def test_wrong_arguments() -> None:
    device, module = ptx.Device(), kernel(STORE, 1)
    with pytest.raises(TypeError, match="has 1 parameters, got 2"):
        device.launch(module, "k", 1, 32, [1, 2])
    with pytest.raises(TypeError, match="has 8 bytes"):
        device.launch(module, "k", 1, 32, [np.float32(1)])
    with pytest.raises(NotImplementedError, match="whole warps"):
        device.launch(module, "k", 1, 33, [0])
    with pytest.raises(ValueError, match="row stride 3 is less"):
        device.allocate((2, 4), np.float32, "x", row_stride=3)
    with pytest.raises(MemoryError):
        device.allocate(1 << 30, np.float32, "x")


@pytest.mark.parametrize("address", [0, 1 << 20, 2**63, 0x7E_0100_0000])
def test_wild_pointer(address: int) -> None:
    """Through an address that is in no array, global or generic."""
    for body in ("st.global.u32 [%d8], %r0;", "ld.u32 %r3, [%d8];"):
        device = ptx.Device()
        device.launch(kernel(body, 1), "k", 1, 32, [np.uint64(address)])
        assert [finding.kind for finding in device.findings] == ["out of bounds"]


def test_limits_of_a_launch() -> None:
    module = ptx.parse(
        HEADER + ".extern .shared .align 16 .b8 dynamic[];\n.visible .entry k() .maxntid 64"
        "{ .reg .b32 %r<2>; mov.u32 %r0, dynamic; st.shared.u32 [%r0], 1; ret; }"
    )
    launches: list[tuple[str, dict[str, object]]] = [
        ("is larger than __launch_bounds__", {"block": 96}),
        ("has 232448", {"dynamic_shared": 228 * 1024}),
        ("is no multiple of the cluster", {"cluster": 3}),
        ("more than 16 blocks", {"cluster": 32}),
        ("grid (0, 1, 1)", {"grid": 0}),
    ]
    for message, changed in launches:
        device = ptx.Device()
        given: dict[str, object] = {"grid": 32, "block": 64, "dynamic_shared": 16, **changed}
        device.launch(module, "k", arguments=[], **given)  # type: ignore[arg-type]
        assert [finding.kind for finding in device.findings] == ["launch"]
        assert message in str(device.findings[0])
