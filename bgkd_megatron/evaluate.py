"""Evaluate a student: torchrun --nproc-per-node N -m bgkd_megatron.evaluate --config FILE [...]

Held-out NLL of student and teacher and their divergence on every set of data.valid.  The student
is student.model_dir; a training checkpoint (.../iter_0000040) is a model directory too.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.launch import add_config_arguments, launch


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bgkd_megatron.evaluate", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", type=_file, help="also write all metrics as JSON to this file")
    args = parser.parse_args(argv)
    run = partial(_evaluate, output=args.output)
    return launch(args, run, resume=False, output=args.output)


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: give a file in it")
    return path


def _evaluate(config: TrainConfig, output: Path | None) -> None:
    from bgkd_megatron.megatron.evaluation import evaluate_run  # Megatron, after cpu_compat

    evaluate_run(config, output)


if __name__ == "__main__":
    sys.exit(main())
