"""run_on_gpu.sh without a GPU: what it lacks is said; with stand-ins for its tools, its report."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
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
    assert any(line.startswith("FAILED  CUDA graphs (") for line in summary)
    assert "no graph" in text
    expected = ["facts", "build of the extension", "build of the kernel benchmark"]
    expected += ["bits beside the executor's", "two steps of distillation"]
    expected += [f"{tool} of the kernels" for tool in ("memcheck", "racecheck", "initcheck")]
    passed = [line for line in summary if line.startswith("passed  ")]
    for name in expected:
        assert any(re.fullmatch(rf"passed  {name} \(\d+ s\)", line) for line in passed), name
    assert re.fullmatch(r"\d+ s in all", summary[-1])
    # one after the other in the report, although they ran side by side
    order = [re.search(rf"^==== {name}: ", text, re.M) for name in expected]
    assert [found.start() for found in order if found] == sorted(f.start() for f in order if f)


def test_a_step_that_hangs_is_stopped_and_the_report_is_written(
    tools: dict[str, str], tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *compare_bits.py) sleep 60 & wait ;; esac\n')
    begin = time.monotonic()
    done = run(tmp_path / "gpu.txt", **tools, BGKD_SECONDS="6")
    assert done.returncode == 1
    assert time.monotonic() - begin < 30
    text = (tmp_path / "gpu.txt").read_text()
    summary = text.split("==== summary\n")[1]
    assert re.search(r"^FAILED  bits beside the executor's \(\d s\)$", summary, re.M)
    assert re.search(r"^passed  two steps of distillation ", summary, re.M)
    # what comes after it has no time left
    assert re.search(r"^FAILED  loss benchmark \(0 s\)$", summary, re.M)
    assert re.search(r"^stopped: it had \d s$", text, re.M)


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
    assert {
        "tests/test_cuda_graphs.py",
        "tests/gpu/compare_bits.py",
        "tests/gpu/distil_two_steps.py",
        "benchmarks/loss.py",
    } <= words
    steps = [line for line in done.stdout.splitlines() if ": skipped, " not in line]
    assert [line for line in steps if not re.match(r".+ \(at most \d+ s\): ", line)] == []
    assert "BGKD_SECONDS   of the whole run (default 470)" in run("--help").stdout


def test_refuses_an_option_it_does_not_know() -> None:
    done = run("--fast")
    assert done.returncode == 2
    assert "unknown option '--fast'" in done.stderr
