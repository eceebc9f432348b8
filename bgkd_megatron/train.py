"""Train a student: torchrun --nproc-per-node N -m bgkd_megatron.train --config FILE [...]"""

from __future__ import annotations

import argparse
import sys

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.launch import add_config_arguments, launch


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bgkd_megatron.train", description=__doc__)
    add_config_arguments(parser)
    return launch(parser.parse_args(argv), _train, resume=True)


def _train(config: TrainConfig) -> None:
    from bgkd_megatron.megatron.train_loop import train  # Megatron, after cpu_compat

    train(config)


if __name__ == "__main__":
    sys.exit(main())
