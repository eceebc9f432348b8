"""Started by torchrun: runs all checks for this number of processes and writes their results.

Starting processes and importing Megatron takes ten seconds, a check a fraction of one, so a launch
runs many: all, or those that are named after WORKSPACE.
WORKSPACE/results_N.json maps the name of a check to "" or to its traceback.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from bgkd_megatron.megatron import cpu_compat, parallel
from bgkd_megatron.megatron.quiet import silence_megatron


def main(workspace: Path, *only: str) -> None:
    silence_megatron()
    parallel.init_distributed()
    cpu_compat.install()
    torch.set_num_threads(1)
    import checks_damage
    import checks_data
    import checks_faults
    import checks_layouts
    import checks_loss
    import checks_model
    import checks_run
    import world

    world_size = dist.get_world_size()
    if world_size == 1:
        world.create(workspace)
    results = {}
    modules = [
        *(checks_data, checks_model, checks_loss, checks_run),
        *(checks_layouts, checks_faults, checks_damage),
    ]
    if world_size > 3:  # the models have no shape for so many tensor-parallel ranks
        modules = [checks_layouts]
    for module in modules:
        for name, check in module.checks(world_size).items():
            if not only or name in only:
                results[name] = _run(check, workspace)
    if dist.get_rank() == 0:
        (workspace / f"results_{world_size}.json").write_text(json.dumps(results, indent=2))
    parallel.shutdown()


def _run(check, workspace: Path) -> str:
    """What went wrong on any rank.  A check that fails on one rank only may leave the others in a
    collective; the time limit of the test then ends the launch."""
    try:
        check(workspace)
        error = ""
    except Exception:
        error = traceback.format_exc()
        print(error, file=sys.stderr, flush=True)  # in case the ranks do not meet below
    errors = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return "\n".join(f"rank {rank}: {e}" for rank, e in enumerate(errors) if e)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
