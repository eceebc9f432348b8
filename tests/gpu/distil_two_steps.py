"""Two steps of distillation with Megatron-Core, from a model to a checkpoint.

    python tests/gpu/distil_two_steps.py [--device cuda] [section.key=value ...]

A small random teacher is converted, the student is the teacher without its middle layer, the text
is the documentation of the project, and training is started as users start it, on one rank. Exit
status: 0 if every loss is finite. cpu does the same without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "convert")]
STEPS = 2
DROPPED_LAYER = "1"


def make_inputs(folder: Path) -> None:
    """teacher, student and data in `folder`."""
    from random_models import write_hugging_face

    from bgkd_megatron.convert.from_hf import convert
    from bgkd_megatron.data.prepare import prepare
    from bgkd_megatron.megatron.quiet import silence_megatron

    silence_megatron()
    write_hugging_face(folder / "hf", "llama")
    convert(folder / "hf", folder / "teacher")
    convert(folder / "hf", folder / "student", dropped=DROPPED_LAYER)
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    prepare(texts, folder / "teacher" / "tokenizer", folder / "text")


def settings(folder: Path, device: str) -> dict[str, object]:
    return {
        "student": {"model_dir": str(folder / "student")},
        "teacher": {"model_dir": str(folder / "teacher")},
        "data": {"train": [str(folder / "text")], "seq_length": 64},
        "objective": {"weighting": "entropy"},
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
        "training": {
            "global_batch_size": 4, "micro_batch_size": 2, "steps": STEPS,
            "precision": "bf16" if device == "cuda" else "fp32",
        },
        "checkpoint": {"dir": str(folder / "checkpoints")},
        "logging": {"dir": str(folder / "logs")},
    }  # fmt: skip


def train(folder: Path, device: str, overrides: list[str]) -> None:
    config = folder / "run.json"  # JSON is YAML
    config.write_text(json.dumps(settings(folder, device)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
               "-m", "bgkd_megatron.train", f"--config={config}", *overrides]  # fmt: skip
    subprocess.run(command, check=True)


def losses(folder: Path) -> list[float]:
    from bgkd_megatron.megatron.run_log import METRICS_FILE

    lines = (folder / "logs" / METRICS_FILE).read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device != found:
        parser.error(f"--device {options.device}: training would take the device {found}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_inputs(folder)
        train(folder, found, options.overrides)
        found_losses = losses(folder)
    name = torch.cuda.get_device_name() if found == "cuda" else "the CPU"
    print(
        f"on {name}:", *(f"loss {loss:.6g} at step {k}" for k, loss in enumerate(found_losses, 1))
    )
    if len(found_losses) == STEPS and all(map(math.isfinite, found_losses)):
        return 0
    print(f"distil_two_steps: expected {STEPS} finite losses, got {found_losses}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
