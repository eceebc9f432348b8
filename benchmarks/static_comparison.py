"""Bytes and instructions for each logit of our kernels and of others' Triton kernels. No GPU.

    python benchmarks/static_comparison.py                     # sm_90, V = 128,256
    python benchmarks/static_comparison.py --capability 100 --vocab 151936 --json counts.json

Liger's and Transformer Engine's Triton kernels are compiled with the arguments that their own
Python code gives them, ours by nvcc as setup.py does; the loops of both are counted in SASS. It
prints Markdown. docs/static_comparison.md says what the columns mean and what they do not.

Needs nvcc, cuobjdump and nvdisasm (pip install '.[gpu-proof]'), triton, liger-kernel and
transformer-engine (pip install --no-deps: none of its libraries is loaded). A row whose package is
missing says so.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from static_counts import report
from static_counts.comparison import TENSOR_PARALLEL, compare
from static_counts.losses import NUM_TOKENS
from static_counts.ours import ARCHITECTURES

PACKAGES = ("torch", "triton", "liger-kernel", "transformer-engine", "nvidia-cuda-nvdisasm")


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    facts = _facts(options)
    print("; ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    # Of Triton about its coming defaults.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rows = compare(options.vocab, options.capability)
    for part in (report.losses_table, report.kernels_table, report.operations_list):
        print("\n".join(part(rows)), end="\n\n")
    if options.json:
        options.json.write_text(json.dumps(report.document(rows, facts), indent=1) + "\n")


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "target": f"sm_{options.capability}",
        "vocabulary": options.vocab,
        "tensor parallel": TENSOR_PARALLEL,
        "tokens": NUM_TOKENS,
        **{name: _version(name) for name in PACKAGES},
        "nvcc": _tool_version("nvcc"),
        "Triton's ptxas": _triton_ptxas(options.capability),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _tool_version(name: str) -> str:
    from compiler import find_tool, run_tool

    path = find_tool(name)
    if path is None:
        return "is not found"
    found = re.search(r"release [\d.]+, V([\d.]+)", run_tool([str(path), "--version"]))
    return found[1] if found else "of an unknown version"


def _triton_ptxas(capability: int) -> str:
    try:
        from triton.backends.nvidia.compiler import get_ptxas
    except ImportError:
        return "is not installed"
    return get_ptxas(capability).version


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, default=128_256, help="a multiple of 8")
    parser.add_argument("--capability", type=int, default=90, choices=sorted(ARCHITECTURES))
    parser.add_argument("--json", type=Path, help="where to write all counts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
