"""The commands as processes of their own: what they print, and what a signal leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from random_models import write_hugging_face
from test_gguf import CONFIG, TOKENIZER


def command(module: str, source: Path, target: Path) -> list[str]:
    module = f"bgkd_megatron.convert.{module}"
    return [sys.executable, "-m", module, "--input", str(source), "--output", str(target)]


def test_success_leaves_stderr_empty(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "hf", "llama")
    for module, source, target in (("from_hf", "hf", "model"), ("to_hf", "model", "back")):
        process = subprocess.run(
            command(module, tmp_path / source, tmp_path / target),
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stderr == ""
        assert process.stdout.startswith(f"{tmp_path / target}: ")
        assert process.stdout.count("\n") == 1


@pytest.mark.parametrize("module", ["from_hf", "to_hf"])
def test_sigterm_leaves_nothing(module: str, tmp_path: Path) -> None:
    """Sent while the command waits for a file: a pipe into which nobody writes."""
    source, target = tmp_path / "in", tmp_path / "out" / "x"
    if module == "from_hf":
        write_hugging_face(source, "llama")
        pipe = source / "config.json"
        pipe.unlink()
    else:
        TOKENIZER.save_pretrained(source / "tokenizer")
        (source / "weights").mkdir()
        CONFIG.write(source)
        pipe = source / "weights" / "metadata.json"
    os.mkfifo(pipe)

    process = subprocess.Popen(command(module, source, target), stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 60
    while not list(target.parent.glob(".x.partial-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.terminate()

    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 128 + signal.SIGTERM
    assert list(target.parent.iterdir()) == []
