"""Counting and reporting without a compiler; with nvcc and with Triton, where they are, that every
byte of a logit is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from static_counts import losses, report
from static_counts.comparison import Row, compare
from static_counts.kernels import KernelCount, Pass, of_triton
from static_counts.loops import Loop, loops_of, steady_path
from static_counts.losses import LOSSES, NUM_TOKENS, Inputs, Loss, Place
from static_counts.ours import OurKernels
from static_counts.trace import OurOperation, TorchOperation, TritonLaunch, recording

# isort: split
from compiler import find_tool
from sass import SassInstruction, SassKernel
from sass.disassembly import Resources

COLUMNS = 16_384


def sass(text: str) -> tuple[list[SassInstruction], dict[str, int]]:
    """Instructions and labels, one a line: "LABEL:" or "OPCODE operands"."""
    code: list[SassInstruction] = []
    labels = {}
    for line in text.split("\n"):
        opcode, _, operands = line.strip().partition(" ")
        if opcode.endswith(":"):
            labels[opcode[:-1]] = len(code)
        elif opcode:
            code.append(SassInstruction(opcode, operands))
    return code, labels


# The next vector is loaded unless it is the last one; a label's column is rare; a vector is stored
# whole, or by columns at the end of a row.
LOOP = """
    MOV R0
  .L_loop:
    BRA `(.L_last)
    LDG.E.128 R4
  .L_last:
    MUFU.EX2 R1
    BRA `(.L_no_label)
    FADD R1
  .L_no_label:
    BRA `(.L_columns)
    STG.E.128 R1
    BRA `(.L_next)
  .L_columns:
    STG.E.U16 R1
    STG.E.U16 R1
  .L_next:
    EXIT
    BRA `(.L_loop)
    EXIT
"""
STEADY = ["BRA", "LDG.E.128", "MUFU.EX2", "BRA", "BRA", "STG.E.128", "BRA", "EXIT", "BRA"]


def test_the_steady_path_moves_whole_vectors_and_skips_what_is_rare() -> None:
    code, labels = sass(LOOP)
    assert [i.opcode for i in steady_path(code[1:-1], 1, labels)] == STEADY


def test_loop_counts() -> None:
    code, labels = sass(LOOP)
    (loop,) = loops_of(SassKernel("k", "sm_90a", Resources(32, 0, 0, 0), code, labels))
    assert loop == Loop(
        instructions=9, loaded=16, stored=16, narrow=0, shared_loads=0, exponentials=1, spills=0,
        pipes={"control": 6, "lsu": 2, "mufu": 1},
    )  # fmt: skip


def test_a_loop_that_reads_no_device_memory_is_none() -> None:
    code, labels = sass(".L_loop:\nLDS R0\nSTL R0\nBRA `(.L_loop)")
    assert loops_of(SassKernel("k", "sm_90a", Resources(32, 0, 0, 0), code, labels)) == []


def test_torch_operations_count_what_they_read_and_write() -> None:
    logits = torch.zeros(NUM_TOKENS, 100, dtype=torch.bfloat16)
    with recording(90) as trace:
        F.log_softmax(logits.float(), dim=-1)
    assert trace.steps == [
        TorchOperation("aten::_to_copy", (2 + 4) * logits.numel(), logits.numel()),
        TorchOperation("aten::_log_softmax", (4 + 4) * logits.numel(), logits.numel()),
    ]


def test_our_operations_are_seen_with_their_arguments() -> None:
    place = Place(COLUMNS, COLUMNS, 90, None)
    (ours, *_) = (loss for loss in LOSSES if loss.subject == "forward KL")
    step, inputs = ours.prepare(place), Inputs.make(COLUMNS)
    with recording(90) as trace:
        step(inputs)
    operations = [s for s in trace.steps if isinstance(s, OurOperation)]
    assert [o.name for o in operations] == ["vocab_stats", "merge_stats", "vocab_stats_backward_"]
    assert operations[0].arguments["teacher_logits"] is inputs.teacher
    assert operations[0].arguments["features"] & 4


def missing(place: Place) -> Any:
    return losses._without_packages("no_such_package", "module")


def test_a_missing_package_is_said() -> None:
    (row,) = compare(COLUMNS, 90, [Loss("theirs", "cross-entropy", missing)])
    assert row.reason == "ModuleNotFoundError: No module named 'no_such_package'"
    assert row.reason in "\n".join(report.losses_table([row]))


def a_row() -> Row:
    loop = Loop(300, 64, 32, 0, 0, 33, 0, {"fma": 100, "mufu": 33})
    # Four iterations of 1024 threads with 32 columns each, for 128,256.
    kernel = KernelCount("kernel", "sm_90a", 1024, 64, 0, [Pass(loop, 32, 300 * 4 * 1024)])
    return Row("theirs", "cross-entropy", 128_256, [kernel], [("aten::mul", 6.0)])


def test_tables_and_document() -> None:
    row = a_row()
    assert (row.kernel_bytes, row.torch_bytes) == (3.0, 6.0)
    *_, line = report.losses_table([row])
    assert line == (
        "| theirs | 128,256 | 3 | 6 | **9** | 9.4 + torch | 9.6 + torch | 1.03 + torch |"
    )
    table = list(report.kernels_table([row, row]))
    assert len(table) == 3  # once, although two losses run it
    assert table[2].startswith("| kernel | 128,256 | 1024 | 64 | 0 | 32 | 2 + 1 | 0 | 9.4 | 3.12 |")
    assert list(report.operations_list([row])) == [
        "* theirs (cross-entropy, 128,256 columns): aten::mul 6"
    ]
    document = json.loads(json.dumps(report.document([row], {"target": "sm_90"})))
    assert document["rows"][0]["kernels"][0]["passes"][0]["loop"]["exponentials"] == 33
    assert document["rows"][0]["row_instructions"] == row.row_instructions


def test_a_launch_that_hides_its_block_size_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel: how many columns"):
        of_triton(TritonLaunch("kernel", b"", None, 4, 10), COLUMNS)


def test_the_vocabulary_must_fit_the_ranks() -> None:
    parallel = Loss("theirs", "cross-entropy", missing, tensor_parallel=True)
    with pytest.raises(ValueError, match="multiple of the 8 ranks"):
        compare(COLUMNS + 1, 90, [parallel])


# ---- with the disassembler


@pytest.fixture
def disassembler() -> None:
    if find_tool("nvdisasm") is None or find_tool("cuobjdump") is None:
        pytest.skip("no nvdisasm and cuobjdump: pip install '.[gpu-proof]'")


def bytes_of(subject: str, title: str, tensor_parallel: bool = False) -> float:
    (loss,) = (
        loss
        for loss in LOSSES
        if (loss.subject, loss.title, loss.tensor_parallel) == (subject, title, tensor_parallel)
    )
    (row,) = compare(COLUMNS * 8 if tensor_parallel else COLUMNS, 90, [loss])
    if row.reason.startswith(("ModuleNotFoundError", "ImportError")):
        pytest.skip(row.reason)
    assert not row.reason
    assert row.row_instructions >= row.loop_instructions > 0
    assert all(not part.loop.narrow for part in row.passes)
    return row.kernel_bytes + row.torch_bytes


@pytest.mark.usefixtures("disassembler")
@pytest.mark.skipif(find_tool("nvcc") is None, reason="no nvcc: our kernels are not compiled")
@pytest.mark.parametrize(
    ("subject", "title", "expected"),
    [
        ("cross-entropy", "ours", 2 + 2 + 2),
        ("forward KL", "ours", 4 + 4 + 2),
        ("forward KL", "ours, gradient in forward, loss last", 4 + 2),
        ("forward KL", "ours, gradient in forward, loss scaled", 4 + 2 + 2 + 2),
        ("Jensen-Shannon", "ours", 4 + 4 + 4 + 2),
    ],
)
def test_our_bytes(subject: str, title: str, expected: float) -> None:
    assert bytes_of(subject, title) == expected


@pytest.mark.parametrize("features", [0, 2])
def test_our_kernels_take_rows_of_a_round_at_least(features: int) -> None:
    operation = OurOperation("vocab_stats", {"features": features})
    with pytest.raises(ValueError, match="at least 4096 columns"):
        OurKernels(90).of(operation, 100)


@pytest.fixture
def triton(disassembler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return pytest.importorskip("triton")


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("subject", "title", "tensor_parallel", "expected"),
    [
        ("cross-entropy", "Liger, loss last", False, 2 + 2 + 2),
        ("cross-entropy", "Liger, loss scaled", False, 2 + 2 + 2 + 2 + 2),
        ("cross-entropy", "TE", False, 2 + 2 + 2 + 2),
        ("cross-entropy", "TE, overwrite_input", True, 2 + 2 + 2),
        # log_softmax of both in float32, forward and backward, and what is between
        ("forward KL", "log_softmax, Liger KLDivLoss", False, 2 * 14 + 8 + 8 + 8 + 12 + 6),
    ],
)
def test_their_bytes(subject: str, title: str, tensor_parallel: bool, expected: float) -> None:
    counted = bytes_of(subject, title, tensor_parallel)
    assert counted == pytest.approx(expected, abs=0.01)


@pytest.mark.usefixtures("triton")
def test_a_kernel_is_compiled_for_the_architecture_and_not_run(triton: Any) -> None:
    kernel = pytest.importorskip("liger_kernel.ops.utils").element_mul_kernel
    rows, scale = torch.ones(NUM_TOKENS, COLUMNS), torch.full((1,), 2.0)
    targets = []
    for capability in (80, 90):
        with recording(capability) as trace:
            launch(kernel, rows, scale)
        (step,) = trace.steps
        assert isinstance(step, TritonLaunch)
        assert step.largest_tensor == rows.numel()
        count = of_triton(step, COLUMNS)
        assert (count.threads, count.bytes) == (256, 4 + 4)
        targets.append(count.target)
    assert [target[:5] for target in targets] == ["sm_80", "sm_90"]
    assert bool((rows == 1).all())


def launch(kernel: Any, rows: Tensor, scale: Tensor) -> None:
    kernel[(len(rows),)](rows, rows.stride(0), scale, COLUMNS, BLOCK_SIZE=4096, num_warps=8)
