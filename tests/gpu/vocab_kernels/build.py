"""The kernels that ship, compiled once for all tests: PTX, and objects with the host code.

One run of nvcc for each source makes both, with setup.py's flags. Results are kept in build/kernels
of the repository until a source, a header, a flag or the compiler changes.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ptx
from compiler import Compiler, run_tool
from stand_in_runtime import StandInRuntime

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "csrc"
CACHE = ROOT / "build" / "kernels"
OTHER_ARCHITECTURES = ("sm_80", "sm_100a")
ARCHITECTURES = ("sm_90a", *OTHER_ARCHITECTURES)  # most tests run the first
# The sweeps compute on single columns, and on pairs of columns from sm_100 on.
SWEEP_ARCHITECTURES = ("sm_90a", "sm_100a")
KEPT = (".ptx", ".cubin", ".o")
KERNEL = re.compile(r"^(?:\.visible )?\.entry (\w+)\(.*?^}$", re.M | re.S)


def nvcc_flags() -> list[str]:
    """setup.py's: what is tested is what ships."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name("NVCC_FLAGS")], value=value):
                code = compile(ast.Expression(value), "setup.py", "eval")
                return [*eval(code), "-Xcompiler=-fPIC"]
    raise LookupError("setup.py has no NVCC_FLAGS")


def cuda_sources() -> list[Path]:
    lines = (line.split() for line in (SOURCES / "sources.txt").read_text().splitlines())
    return [ROOT / line[1] for line in lines if line and line[0] == "cuda"]


class ShippedKernels:
    """What nvcc made of each source."""

    def __init__(
        self, folders: Sequence[Path], architectures: Sequence[str] = ARCHITECTURES
    ) -> None:
        self._folders = folders
        self._names_have_arch = len(architectures) > 1  # nvcc's names of what it keeps
        self._modules: dict[tuple[str, tuple[str, ...]], list[ptx.Module]] = {}
        self.objects = [path for folder in folders for path in folder.glob("*.o")]
        self._texts = {
            arch: [path.read_text() for path in self._files(arch, "ptx")] for arch in architectures
        }

    def _files(self, arch: str, suffix: str) -> list[Path]:
        part = f".compute_{arch.removeprefix('sm_')}" if self._names_have_arch else ""
        pattern = f"*{part}.{suffix}"
        return [path for folder in self._folders for path in folder.glob(pattern)]

    def names(self, arch: str) -> list[str]:
        """The mangled names of all kernels."""
        return [name for text in self._texts[arch] for name in KERNEL.findall(text)]

    def texts(self, arch: str) -> list[str]:
        return self._texts[arch]

    def cubins(self, arch: str) -> list[Path]:
        return self._files(arch, "cubin")

    def modules(self, arch: str, kernels: Sequence[str] = ("",)) -> list[ptx.Module]:
        """kernels: parts of the names of those that are wanted; to parse all takes 15 s, once."""
        key = (arch, tuple(kernels))
        if key not in self._modules:
            self._modules[key] = self._parsed(arch, kernels)
        return self._modules[key]

    def _parsed(self, arch: str, kernels: Sequence[str]) -> list[ptx.Module]:

        def wanted(found: re.Match[str]) -> str:
            return found[0] if any(part in found[1] for part in kernels) else ""

        return [
            ptx.parse(KERNEL.sub(wanted, text))
            for text in self._texts[arch]
            if any(part in text for part in kernels)
        ]


def build(compiler: Compiler, architectures: Sequence[str] = ARCHITECTURES) -> ShippedKernels:
    def compiled(source: Path) -> Path:
        return _compiled(compiler, source, architectures)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return ShippedKernels(list(pool.map(compiled, cuda_sources())), architectures)


def _compiled(compiler: Compiler, source: Path, architectures: Sequence[str]) -> Path:
    """The folder with what nvcc makes of one source, for these architectures."""
    command = [str(compiler.nvcc), "-c", *nvcc_flags()]
    for arch in architectures:
        command.append(f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}")
    key = _key(compiler, source, command)
    result = CACHE / source.stem
    if tuple(architectures) != ARCHITECTURES:
        result = CACHE / "-".join([source.stem, *architectures])
    stamp = result / "key"
    if stamp.exists() and stamp.read_text() == key:
        return result
    CACHE.mkdir(parents=True, exist_ok=True)
    # the folder appears complete, for another process may look for it at the same time
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        output = new / f"{source.stem}.o"
        run_tool([*command, "--keep", "--keep-dir", str(new), "-o", str(output), str(source)])
        for path in new.iterdir():
            if path.suffix not in KEPT:
                path.unlink()
        (new / "key").write_text(key)
        if result.exists():
            result.rename(Path(scratch) / "old")
        new.rename(result)
    return result


def _key(compiler: Compiler, source: Path, command: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(command).encode())
    digest.update(run_tool([str(compiler.nvcc), "--version"]).encode())
    headers = [p for p in SOURCES.rglob("*") if p.suffix in (".h", ".cuh")]
    for path in (source, *sorted(headers)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def host_library(runtime: StandInRuntime, kernels: ShippedKernels) -> Path:
    """The launchers behind C functions (launchers.cpp), linked against the stand-in runtime."""
    compiler = runtime.compiler
    host = shutil.which("g++")
    assert host is not None
    output = compiler.folder / "libvocab_kernels.so"
    run_tool([
        host, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{compiler.include}",
        str(Path(__file__).with_name("launchers.cpp")), *map(str, kernels.objects),
        str(runtime.path), "-o", str(output),
    ])  # fmt: skip
    return output
