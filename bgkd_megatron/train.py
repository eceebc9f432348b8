"""Train a student: torchrun --nproc-per-node N -m bgkd_megatron.train --config FILE [...]"""

from __future__ import annotations

import argparse
import sys

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.launch import add_config_arguments, launch, print_plan


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bgkd_megatron.train", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print layout, parameters and memory of the ranks, data and schedule, and leave",
    )
    parser.add_argument(
        "--world-size", type=int, help="ranks of the dry run (default: those of torchrun, or 1)"
    )
    args = parser.parse_args(argv)
    if args.dry_run:
        return print_plan(args, args.world_size)
    if args.world_size is not None:
        parser.error("--world-size belongs to --dry-run; torchrun starts the ranks of a run")
    return launch(args, _train, resume=True)


def _train(config: TrainConfig) -> None:
    from bgkd_megatron.megatron.train_loop import train  # Megatron, after cpu_compat

    train(config)


if __name__ == "__main__":
    sys.exit(main())
