"""What imports do, and that the CPU compatibility is confined to where it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bgkd_megatron.megatron import cpu_compat


def run_python(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_the_package_does_not_import_megatron() -> None:
    imports = "import bgkd_megatron, bgkd_megatron.loss, bgkd_megatron.megatron.launch, sys; "
    loaded = run_python(imports + "print([m for m in sys.modules if m.startswith('megatron')])")
    assert loaded == "[]"


def test_install_leaves_cuda_machines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(vars(torch.cuda))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu_compat.install()
    monkeypatch.undo()
    assert dict(vars(torch.cuda)) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is redirected where there is a GPU")
def test_install_works_without_triton_and_twice() -> None:
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
from bgkd_megatron.megatron import cpu_compat
cpu_compat.install()
cpu_compat.install()
import torch
assert torch.zeros(1, device="cuda").device.type == "cpu"
assert torch.ones(1).type() == "torch.cuda.FloatTensor"
from megatron.core.transformer.moe.paged_stash import paged_stash_copy_kernel
try:
    paged_stash_copy_kernel[1,]()
except RuntimeError as error:
    print(error)
"""
    assert "need triton and a GPU" in run_python(code)
