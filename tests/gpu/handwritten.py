"""Single PTX instructions without nvcc: one thread for each row of inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ptx

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<16>;
    .reg .f32 %f<8>; .reg .f64 %g<8>;
"""
THREAD = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
    mad.lo.s32 %r0, %r1, %r2, %r0; cvt.u64.u32 %d0, %r0;
"""
PREFIX = {1: "h", 2: "h", 4: "r", 8: "d"}


def kernel(body: str, num_pointers: int, name: str = "k") -> ptx.Module:
    """A kernel with pointers in %d8, %d9, ...; %r0 and %d0 hold the thread's number in the grid."""
    parameters = ", ".join(f".param .u64 {name}_{k}" for k in range(num_pointers))
    loads = " ".join(f"ld.param.u64 %d{8 + k}, [{name}_{k}];" for k in range(num_pointers))
    code = f"{REGISTERS}{loads}{THREAD}{body}\nret;\n"
    return ptx.parse(f"{HEADER}.visible .entry {name}({parameters})\n{{{code}}}\n")


def evaluate(
    body: str, inputs: Sequence[np.ndarray], dtype: np.typing.DTypeLike, **options: float
) -> np.ndarray:
    """Runs `body` for each element. Input k arrives in the bits of %h4.. / %r4.. / %d4.. (numbered
    by k, with the prefix of its width: h 16, r 32, d 64); the result is what the body leaves in
    %h1, %r3 or %d1, by the width of dtype."""
    count = -(-len(inputs[0]) // 32) * 32
    result = np.dtype(dtype)
    code, device, arrays = "", ptx.Device(), []
    for k, values in enumerate(inputs):
        padded = np.resize(values, count)
        width = padded.dtype.itemsize
        arrays.append(device.upload(padded, f"input {k}"))
        code += (
            f"mad.lo.u64 %d2, %d0, {width}, %d{8 + k};"
            f"ld.global.b{8 * width} %{PREFIX[width]}{4 + k}, [%d2];\n"
        )
    out = device.allocate(count, result, "out")
    register = {2: "%h1", 4: "%r3", 8: "%d1"}[result.itemsize]
    code += f"{body}\nmad.lo.u64 %d2, %d0, {result.itemsize}, %d{8 + len(inputs)};"
    code += f"st.global.b{8 * result.itemsize} [%d2], {register};"
    module = kernel(code, len(inputs) + 1)
    device.launch(module, "k", count // 32, 32, [*arrays, out], **options)  # type: ignore[arg-type]
    assert device.findings == [], device.findings[0]
    return out.read()[: len(inputs[0])]
