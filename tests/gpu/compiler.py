"""nvcc, as the tests use it: no GPU and no driver needed. Every result is made once a session."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import ptx

LANGUAGE = ("-std=c++17",)


def find_tool(name: str) -> Path | None:
    """On PATH, in CUDA_HOME, or in the packages that NVIDIA publishes for pip."""
    found = shutil.which(name)
    if found:
        return Path(found)
    folders = []
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        folders.append(Path(home) / "bin")
    specification = importlib.util.find_spec("nvidia")
    for place in (specification and specification.submodule_search_locations) or ():
        folders += sorted(Path(place).glob("cu*/bin"), reverse=True)
    return next((f / name for f in folders if os.access(f / name, os.X_OK)), None)


class Compiler:
    def __init__(self, nvcc: Path, folder: Path) -> None:
        self.nvcc, self.folder = nvcc, folder
        self._modules: dict[Path, ptx.Module] = {}

    @cached_property
    def include(self) -> Path:
        """CUDA's headers. nvcc on PATH may be a script: it is asked where its toolkit is."""
        probe = self.folder / "probe.cu"
        probe.touch()
        done = subprocess.run(
            [str(self.nvcc), "--dryrun", "-c", str(probe)],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"^#\$ TOP=(.*)$", done.stderr, re.M)
        if found is None:
            raise RuntimeError(f"no TOP in what nvcc --dryrun says:\n{done.stderr}")
        return Path(found[1].strip()) / "include"

    def ptx_text(self, source: Path, arch: str = "sm_90a", flags: Sequence[str] = ()) -> str:
        return self._ptx_file(source, arch, flags).read_text()

    def ptx(self, source: Path, arch: str = "sm_90a", flags: Sequence[str] = ()) -> ptx.Module:
        file = self._ptx_file(source, arch, flags)
        if file not in self._modules:
            self._modules[file] = ptx.parse(file.read_text())
        return self._modules[file]

    def _ptx_file(self, source: Path, arch: str, flags: Sequence[str]) -> Path:
        # -lineinfo: findings name source lines
        return self._run(".ptx", source, ["-ptx", f"-arch={arch}", "-lineinfo", *flags])

    def cubin(self, source: Path, arch: str = "sm_90a", flags: Sequence[str] = ()) -> Path:
        return self._run(".cubin", source, ["-cubin", f"-arch={arch}", *flags])

    def library(self, source: Path, arch: str = "sm_90a", flags: Sequence[str] = ()) -> Path:
        """A shared library with host code; it asks for the shared libcudart."""
        shared = ["-shared", "-Xcompiler", "-fPIC", "--cudart", "shared", f"-arch={arch}"]
        return self._run(".so", source, [*shared, *flags])

    def _run(self, suffix: str, source: Path, options: Sequence[str]) -> Path:
        command = [str(self.nvcc), *LANGUAGE, *options, str(source)]
        key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:16]
        output = self.folder / f"{source.stem}-{key}{suffix}"
        if not output.exists():
            run_tool([*command, "-o", str(output)])
        return output


def run_tool(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
