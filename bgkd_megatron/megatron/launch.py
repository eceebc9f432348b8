"""From the command line to a running job: configuration, process groups, errors, exit codes.

Exit codes: 0 done (or stopped by SIGTERM and saved), 1 the run failed, 2 it could not start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import torch.distributed as dist

from bgkd_megatron.megatron import checkpoint_dir, cpu_compat, parallel
from bgkd_megatron.megatron.checks import check_run
from bgkd_megatron.megatron.config import TrainConfig, load_config
from bgkd_megatron.megatron.errors import ConfigError, RankError, RunError
from bgkd_megatron.megatron.quiet import silence_megatron

__all__ = ["add_config_arguments", "launch"]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config FILE and the overrides."""
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's"
    )


def launch(args: argparse.Namespace, run: Callable[[TrainConfig], None], *, resume: bool) -> int:
    """Run `run` on the processes of this job; returns the exit code.

    run imports Megatron itself: only then is it clear that the job can start.  resume: the run
    continues from checkpoint.dir, so its latest checkpoint must fit the configuration.
    """
    config, mistake = _read_config(args, resume)
    parallel.init_distributed()
    if _tell_mistakes(mistake) or config is None:
        dist.destroy_process_group()
        return 2
    silence_megatron()
    cpu_compat.install()
    parallel.init_model_parallel(config.parallel.tensor_parallel, seed=config.training.seed)
    exit_code = 0
    try:
        run(config)
    except ConfigError as error:  # only reading a file showed it; the ranks do not meet here
        _tell_once(str(error))
        return 2
    except RankError as error:
        _tell_once(f"rank {dist.get_rank()}: {error}")
        return 1
    except RunError as error:  # raised by all ranks
        _tell_once(str(error))
        exit_code = 1
    # Not in a finally: after another error the ranks do not meet here, and leaving would wait.
    parallel.shutdown()
    return exit_code


def _read_config(args: argparse.Namespace, resume: bool) -> tuple[TrainConfig | None, str | None]:
    """The configuration, or what is wrong with it as this rank sees it."""
    try:
        config = load_config(args.config, args.overrides)
        check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
        checkpoint = checkpoint_dir.latest(config.checkpoint.dir) if resume else None
        if checkpoint is not None:
            checkpoint_dir.read_progress(checkpoint, config)
    except ConfigError as error:
        return None, str(error)
    return config, None


def _tell_mistakes(mistake: str | None) -> bool:
    """Whether any rank found a mistake; each different one is printed once.

    A file may be missing on one machine only, so the ranks compare before any of them gives up.
    """
    mistakes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(mistakes, mistake)
    found = dict.fromkeys(m for m in mistakes if m is not None)
    if dist.get_rank() == 0:
        for text in found:
            print(f"error: {text}", file=sys.stderr, flush=True)
    dist.barrier()
    return bool(found)


def _tell_once(text: str) -> None:
    """Print an error unless another rank has printed the same; without a collective, for the other
    ranks may not come here."""
    if parallel.is_first(text):
        print(f"error: {text}", file=sys.stderr, flush=True)
