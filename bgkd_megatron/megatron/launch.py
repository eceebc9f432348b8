"""From the command line to a running job: configuration, process groups, errors, exit codes.

Exit codes: 0 done (or stopped by SIGTERM and saved), 1 the run failed, 2 it could not start.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from bgkd_megatron.megatron import checkpoint_dir, cpu_compat, parallel
from bgkd_megatron.megatron.checks import check_run
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.config_file import load_config
from bgkd_megatron.megatron.dry_run import dry_run
from bgkd_megatron.megatron.errors import ConfigError, RankError, RunError
from bgkd_megatron.megatron.quiet import silence_megatron
from bgkd_megatron.megatron.run_lock import lock_folders
from bgkd_megatron.settings import explain

__all__ = ["add_config_arguments", "launch", "print_plan"]

_OF_ANOTHER_RANK = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out")
"""What the network says; gloo has no error type of its own."""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config FILE and the overrides."""
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's"
    )


def print_plan(args: argparse.Namespace, world_size: int | None) -> int:
    """Print what the run would do; returns the exit code.  Only the first of several processes
    does."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    world_size = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    try:
        console = Console(width=None if sys.stdout.isatty() else 150)
        dry_run(load_config(args.config, args.overrides), world_size, console)
    except ConfigError as error:
        _print_error(str(error))
        return 2
    return 0


def launch(
    args: argparse.Namespace,
    run: Callable[[TrainConfig], None],
    *,
    resume: bool,
    output: Path | None = None,
) -> int:
    """Run `run` on the processes of this job; returns the exit code.

    run imports Megatron itself: only then is it clear that the job can start.
    resume: the run continues from checkpoint.dir, so its latest checkpoint must fit the
    configuration, and saves there; no other run may save there or log to logging.dir meanwhile.
    output: a file that it writes, beside its logs.
    """
    with ExitStack() as locks:  # until this process has nothing more to write
        return _launch(args, run, resume, output, locks)


def _launch(
    args: argparse.Namespace,
    run: Callable[[TrainConfig], None],
    resume: bool,
    output: Path | None,
    locks: ExitStack,
) -> int:
    config, mistake = _read_config(args, resume, output, locks)
    parallel.init_distributed(*([] if config is None else [config.parallel.timeout_minutes]))
    if _tell_mistakes(mistake) or config is None:
        dist.destroy_process_group()
        return 2
    silence_megatron()
    cpu_compat.install()
    parallel.init_model_parallel(config.parallel, seed=config.training.seed)
    exit_code = 0
    try:
        run(config)
    except (ConfigError, RankError) as error:  # of this rank: the others may not come here
        _print_error(f"rank {dist.get_rank()}: {error}")
        return 2 if isinstance(error, ConfigError) else 1  # ConfigError: in a file that was read
    except RunError as error:
        if dist.get_rank() == 0:
            _print_error(str(error))
        dist.barrier()  # torchrun ends all ranks when one has left
        exit_code = 1
    except Exception as error:
        traceback.print_exc()
        _print_error(f"rank {dist.get_rank()}: {_cause(error)}")
        return 1
    # Not in a finally: after an error of one rank the ranks do not meet here, and leaving would
    # wait.
    parallel.shutdown()
    return exit_code


def _read_config(
    args: argparse.Namespace, resume: bool, output: Path | None, locks: ExitStack
) -> tuple[TrainConfig | None, str | None]:
    """The configuration, or what is wrong with it as this rank sees it.

    Rank 0 locks what the run saves to; an evaluation may read there meanwhile.
    """
    try:
        config = load_config(args.config, args.overrides)
        folders = {"logging.dir": config.logging.dir}
        if resume:
            folders["checkpoint.dir"] = config.checkpoint.dir
        if output is not None:
            folders["--output"] = output.parent
        check_run(config, int(os.environ.get("WORLD_SIZE", "1")), folders)
        if resume and os.environ.get("RANK", "0") == "0":
            locks.enter_context(lock_folders(folders))
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
            _print_error(text)
    dist.barrier()
    return bool(found)


def _cause(error: Exception) -> str:
    """One line on an error that nobody foresaw."""
    where = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    text = f"{type(error).__name__}{where}: {explain(error)}"
    if isinstance(error, dist.DistError) or any(sign in text for sign in _OF_ANOTHER_RANK):
        text += (
            ". Another rank has died or hangs: see what it printed last, or what torchrun says of "
            "it; start again to go on from the latest checkpoint"
        )
    return text


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
