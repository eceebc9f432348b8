"""run_on_gpu.sh without a GPU: what it lacks is said; with stand-ins for its tools, its report."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_on_gpu.sh")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True
    )


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """A toolkit and an environment whose programs do nothing, but for the tests of graphs: fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fails = 'case "$*" in *test_cuda_graphs*) echo no graph; exit 1 ;; esac\n'
    programs = ("nvidia-smi", "nvcc", "python", "cmake", "git", "compute-sanitizer")
    for name in programs:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho stand-in {name}\n{fails if name == 'python' else ''}")
        program.chmod(0o755)
    return {"CUDA_HOME": str(tmp_path), "PYTHON": str(folder / "python")}


def test_the_report_names_what_failed_and_runs_the_rest(
    tools: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "reports" / "gpu.txt"
    done = run(report, **tools)
    assert done.returncode == 1
    text = report.read_text()
    assert done.stdout.endswith(text + f"report: {report}\n")
    assert text.index("stand-in nvidia-smi") < text.index("==== build of the extension")
    summary = text.split("==== summary\n")[1].splitlines()
    assert "FAILED  CUDA graphs" in summary
    expected = ["facts", "build of the extension", "operator tests on the GPU", "loss benchmark"]
    expected += [f"{tool} of the kernels" for tool in ("memcheck", "racecheck", "initcheck")]
    assert {f"passed  {name}" for name in expected} <= set(summary)


def test_without_compute_sanitizer_the_report_says_so(
    tools: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bin" / "compute-sanitizer").unlink()
    if shutil.which("compute-sanitizer"):
        pytest.skip("it is installed here")
    run(tmp_path / "gpu.txt", **tools)
    assert "skipped compute-sanitizer: it is not" in (tmp_path / "gpu.txt").read_text()


@pytest.mark.parametrize(
    ("missing", "message"), [("nvcc", "set CUDA_HOME to a toolkit"), ("python", "set PYTHON")]
)
def test_says_what_is_missing(
    tools: dict[str, str], tmp_path: Path, missing: str, message: str
) -> None:
    (tmp_path / "bin" / missing).unlink()
    done = run(tmp_path / "gpu.txt", **tools)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "gpu.txt").exists()


def test_dry_run_lists_the_commands_with_files_that_exist() -> None:
    done = run("--dry-run")
    assert done.returncode == 0
    words = {word for word in done.stdout.split() if word.startswith(("tests/", "benchmarks/"))}
    assert "tests/test_cuda_graphs.py" in words
    assert [word for word in words if not (SCRIPT.parents[2] / word).exists()] == []


def test_refuses_an_option_it_does_not_know() -> None:
    done = run("--fast")
    assert done.returncode == 2
    assert "unknown option '--fast'" in done.stderr
