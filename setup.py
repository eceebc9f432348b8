"""Builds the one extension `bgkd_megatron._C` with ninja; everything else is in pyproject.toml.

BGKD_CUDA=0 or 1 forbids or demands the CUDA kernels. Unset: they are built when torch is a CUDA
build and a toolkit is found (CUDA_HOME). Whether a GPU is present plays no part, so that one image
can build for another machine; TORCH_CUDA_ARCH_LIST chooses the architectures.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# -fopenmp is for at::parallel_for, and only for the compiler: at run time torch's own OpenMP
# library serves both.
CXX_FLAGS = ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden", *WARNINGS]
X86 = platform.machine() in ("x86_64", "AMD64")
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "-lineinfo", "-Xcompiler=-fvisibility=hidden"),
    # The hardware's 2^x flushes subnormal results in any case. The rest of --use_fast_math would
    # cost accuracy where it matters.
    "-ftz=true",
    # Registers that spill to memory cost the bandwidth that the kernels live on.
    *("-Xptxas=-warn-spills,-warn-lmem-usage", "-Werror=all-warnings"),
]
# 8.0 also runs on 8.6 and 8.9, 10.0 on 10.3, and its PTX on what comes after; "a" code, and its
# PTX, on that architecture alone.
CUDA_ARCHITECTURES = "8.0;9.0a;10.0a;10.0+PTX"
# The kernels' instruction sets. PyTorch picks among the same ones at run time
# (ATEN_CPU_CAPABILITY), and so do the operators.
INSTRUCTION_SETS = {"DEFAULT": []}
if X86:
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["AVX2"] = AVX2
    INSTRUCTION_SETS["AVX512"] = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]


def sources(*kinds: str) -> list[str]:
    lines = (
        line.split("#")[0].split() for line in Path("csrc/sources.txt").read_text().splitlines()
    )
    return [path for kind, path in (line for line in lines if line) if kind in kinds]


def cuda_is_missing() -> str | None:
    """What a CUDA build lacks here."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is not a CUDA build"
    if not CUDA_HOME:
        return "no CUDA toolkit is found: set CUDA_HOME"
    # A script named nvcc in a folder of the PATH is not the toolkit.
    headers = ("include/cuda_runtime_api.h", "targets/*/include/cuda_runtime_api.h")
    if not any(path for pattern in headers for path in Path(CUDA_HOME).glob(pattern)):
        return f"CUDA_HOME is {CUDA_HOME}, which has no {headers[0]}: set it to the toolkit"
    return None


def with_cuda() -> bool:
    wanted = os.environ.get("BGKD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"BGKD_CUDA must be 0, 1 or unset, got {wanted!r}")
    missing = cuda_is_missing()
    if wanted == "1" and missing:
        raise SystemExit(f"BGKD_CUDA=1 cannot be done, {missing}. Or unset BGKD_CUDA.")
    if wanted == "" and missing and torch.version.cuda:
        print(f"No CUDA kernels are built: {missing}.")
    return wanted != "0" and missing is None


def check_names(capability: str, objects: list[str]) -> None:
    """A function that another object defines too, say an inline one of the standard library, would
    be linked once: perhaps this one, with instructions that an older processor lacks."""
    if (nm := shutil.which("nm")) is None:
        return
    command = [nm, "--defined-only", "--extern-only", "--format=posix", *objects]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in output.splitlines() if line and not line.endswith(":")]
    names = {line.split()[0] for line in lines}
    # In a mangled name, the namespace CPU_CAPABILITY of ours and of at::vec.
    if shared := [name for name in names if f"{len(capability)}{capability}" not in name]:
        raise SystemExit(
            f"The {capability} kernels define names outside their namespace: {sorted(shared)}. "
            "Build with optimization, so that these functions are inlined."
        )


class BuildKernels(BuildExtension):
    """Compiles the CPU kernels once per instruction set, then everything else as usual."""

    def build_extension(self, ext):
        for capability, flags in INSTRUCTION_SETS.items():
            # GCC 12 takes AVX-512's intentionally undefined registers for a mistake.
            flags = [
                *ext.extra_compile_args["cxx"],
                *flags,
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
                "-Wno-psabi",
            ]
            defines = [
                *ext.define_macros,
                ("CPU_CAPABILITY", capability),
                (f"CPU_CAPABILITY_{capability}", None),
            ]
            objects = self.compiler.compile(
                sources("isa"),
                output_dir=os.path.join(self.build_temp, capability),
                macros=defines,
                include_dirs=ext.include_dirs,
                extra_postargs=flags,
                depends=ext.depends,
            )
            if capability != "DEFAULT":
                check_names(capability, objects)
            ext.extra_objects += objects
        super().build_extension(ext)


def extension():
    cuda = with_cuda()
    kind = CUDAExtension if cuda else CppExtension
    macros = [("BGKD_X86_KERNELS", None)] if X86 else []
    if cuda:
        # BuildExtension makes nvcc's -gencode flags of it.
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
        os.environ["TORCH_CUDA_ARCH_LIST"] = wanted
        macros += [("BGKD_WITH_CUDA", None), ("BGKD_CUDA_ARCHITECTURES", f'"{wanted}"')]
    return kind(
        "bgkd_megatron._C",
        sources("plain", "torch", *(["torch_cuda", "cuda"] if cuda else [])),
        define_macros=macros,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        depends=[str(path) for pattern in ("*.h", "*.cuh") for path in Path("csrc").rglob(pattern)],
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildKernels})
