"""The command line that all examples share, and the choice between real job and fall-back."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from bgkd_megatron.command import EXPECTED_ERRORS
from pipeline import from_scratch, smollm2
from pipeline.fetch import FetchError, default_cache_dir
from pipeline.run import TrainingError
from pipeline.setup import Setup
from pipeline.stages import console

Job = Callable[[Setup, int], int]


def run_example(description: str | None, job: Job, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, get teacher, student and data, and call job(setup, steps).

    Returns the exit status: that of `job`, or 1 after an interruption or an error with a message.
    """
    options = _parser(description).parse_args(arguments)
    # What a batch system or `timeout` sends ends the job like Ctrl-C: training saves first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        setup = _make_setup(options)
        return job(setup, options.steps or setup.steps)
    except (*EXPECTED_ERRORS, TrainingError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
    except KeyboardInterrupt:
        console.print("interrupted: the same command continues")
    return 1


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="everything is written here (default: %(default)s)")  # fmt: skip
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), metavar="DIR",
                        help="downloads are kept here (default: %(default)s)")  # fmt: skip
    parser.add_argument("--steps", type=int, help="length of the distillation")
    parser.add_argument("--fallback", action="store_true",
                        help="use no network: train a small teacher first")  # fmt: skip
    parser.add_argument("--teacher-steps", type=int, default=300, metavar="STEPS",
                        help="length of that training (default: %(default)s)")  # fmt: skip
    return parser


def _make_setup(options: argparse.Namespace) -> Setup:
    """Teacher, student and data: the real ones, or the fall-back where they cannot be had."""
    if not options.fallback:
        try:
            return smollm2.make(options.output / "smollm2", options.cache_dir)
        except FetchError as error:
            console.print(
                f"[yellow]{escape(str(error))}[/]\n"
                "Going on without it: a small teacher is trained on texts that are on this machine."
            )
    root = options.output / f"from_scratch-{options.teacher_steps}"
    return from_scratch.make(root, options.teacher_steps)
