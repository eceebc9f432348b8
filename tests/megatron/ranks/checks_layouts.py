"""Runs on every kind of layout: losses, metrics and weights are those of the single process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checks_run import REFERENCE, assert_same_run, keep_half
from megatron.core import parallel_state
from runs import last_checkpoint, records, train, weights
from world import VOCAB_PADDED, layout, run_config, student_config

from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.model import build_model
from bgkd_megatron.megatron.model_config import ModelConfig
from bgkd_megatron.megatron.sizes import rank_sizes

Check = Callable[[Path], None]
SHARDED = {"distributed_optimizer": True}
OVERLAP = {"distributed_optimizer": True, "overlap": True}
TP_SP = {"tensor_parallel": 2, "sequence_parallel": True}
PP_VP = {"pipeline_parallel": 2, "virtual_pipeline": 2}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "pp2": {"pipeline_parallel": 2},
        "pp2_vp2": PP_VP,
        "cp2": {"context_parallel": 2},
        "dp2_sharded": SHARDED,
        "dp2_overlap": OVERLAP,
    },
    4: {
        "tp2_sp_pp2": {**TP_SP, "pipeline_parallel": 2},
        "tp2_sp_cp2": {**TP_SP, "context_parallel": 2},
        "pp2_vp2_dp2": {**PP_VP, **OVERLAP},
        "pp2_cp2": {"pipeline_parallel": 2, "context_parallel": 2},
        "pp4": {"pipeline_parallel": 4},
        "tp2_dp2": {**TP_SP, **OVERLAP},
    },
}
# Other models and settings: what run they are compared with, and the layouts.
VARIANTS: dict[str, dict[str, Any]] = {
    name: {role: {"model_dir": f"{role}_{name}"} for role in ("student", "teacher")}
    for name in ("experts", "heads", "capped", "tied")
} | {
    "coupled": {
        "objective": {"hard": "risk_guided", "soft": "adaptive_kl"},
        "data": {"end_of_document": 7},
    },
    "ahead": {"teacher": {"microbatches_ahead": 2, "offload": True}},
    "uneven": {
        "student": {"layers_per_stage": [1, 3]},
        "teacher": {"layers_per_stage": [3, 2]},
    },
}
VARIANT_LAYOUTS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    1: [(name, {}) for name in ("experts", "heads", "capped", "tied", "coupled")],
    2: [
        ("experts", {"expert_parallel": 2}),
        ("experts", {**TP_SP}),
        ("heads", {"tensor_parallel": 2}),
        ("heads", {"pipeline_parallel": 2}),
        ("capped", {"tensor_parallel": 2}),
        ("tied", {"pipeline_parallel": 2}),
        ("coupled", {"context_parallel": 2}),
        ("ahead", {"pipeline_parallel": 2}),
        ("uneven", {"pipeline_parallel": 2}),
    ],
    4: [
        ("experts", {"expert_parallel": 2, "pipeline_parallel": 2, **SHARDED}),
        ("experts", {"expert_parallel": 2, "context_parallel": 2}),
        ("coupled", {"context_parallel": 2, "tensor_parallel": 2}),
        ("ahead", {**PP_VP, **OVERLAP}),
    ],
}


ALONE = [name for name, _ in VARIANT_LAYOUTS[1]]


# The second half of a run, from the checkpoint of the layout that is named first.
RESUMED: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("run_1", {"pipeline_parallel": 2}),
        ("pp2", {"tensor_parallel": 2}),
        ("pp2", {**PP_VP}),
        ("pp2_vp2", {**PP_VP}),
        ("cp2", {"context_parallel": 2}),
        ("dp2_sharded", {**SHARDED, "pipeline_parallel": 2}),
        ("dp2_overlap", OVERLAP),
    ],
    4: [("pp2_vp2_dp2", {**TP_SP, **OVERLAP}), ("pp2_vp2_dp2", {**PP_VP, **OVERLAP})],
}


def checks(world_size: int) -> dict[str, Check]:
    found: dict[str, Check] = {
        f"run_on_{name}": partial(same_run, name=name, sizes=sizes)
        for name, sizes in LAYOUTS.get(world_size, {}).items()
    }
    if world_size == 2:
        found["fresh_experts_are_no_copies"] = fresh_experts_are_no_copies
    for variant, sizes in VARIANT_LAYOUTS.get(world_size, []):
        name = "_".join([variant, *(_short(*size) for size in sizes.items())])
        found[f"run_of_{name}"] = partial(same_run, name=name, sizes=sizes, variant=variant)
    for source, sizes in RESUMED.get(world_size, []):
        name = "_".join([source, "then", *(_short(*size) for size in sizes.items())])
        found[f"resume_of_{name}"] = partial(resumed, name=name, source=source, sizes=sizes)
    return found


def _short(setting: str, size: int) -> str:
    return "".join(word[0] for word in setting.split("_")) + f"{size:d}"


def same_run(workspace: Path, name: str, sizes: dict[str, Any], variant: str = "") -> None:
    """Four steps of four samples with unequal masks."""
    sections = dict(VARIANTS.get(variant, {}))
    for role in ("student", "teacher"):
        if "model_dir" in sections.get(role, {}):
            sections[role] = {"model_dir": workspace / sections[role]["model_dir"]}
    config = run_config(workspace, name, parallel=sizes, **sections)
    assert_sizes(config)
    train(config)
    reference = run_config(workspace, variant if variant in ALONE else REFERENCE)
    if not sizes:
        lines = records(config)
        assert lines[-1]["loss"] < lines[0]["loss"]
        return
    start = config.student.model_dir
    assert start is not None
    assert_same_run(config, reference, start)


def assert_sizes(config: TrainConfig) -> None:
    """The plan of a run knows how many parameters this rank will have."""
    assert config.teacher is not None
    student = config.student.model()
    teacher = ModelConfig.read(config.teacher.model_dir).without_heads()
    plan = rank_sizes(config, student, teacher, dist.get_world_size())
    with layout(**config.parallel.model_dump()):
        mine = plan[parallel_state.get_pipeline_model_parallel_rank()]
        for model, section, expected in (
            (student, config.student, mine.student_parameters),
            (teacher, config.teacher, mine.teacher_parameters),
        ):
            pieces = build_model(
                model,
                sequence_parallel=config.parallel.sequence_parallel,
                layers_per_stage=section.layers_per_stage,
            )
            assert sum(p.numel() for piece in pieces for p in piece.parameters()) == expected


def resumed(workspace: Path, name: str, source: str, sizes: dict[str, Any]) -> None:
    """Bit by bit on the same layout; on another one equal up to the order of sums."""
    whole = run_config(workspace, source, parallel=LAYOUTS[dist.get_world_size()].get(source, {}))
    config = run_config(workspace, name, parallel=sizes)
    keep_half(config, whole)
    train(config)
    if config.parallel == whole.parallel:
        assert records(config) == records(whole)
        with layout():
            ours, theirs = weights(last_checkpoint(config)), weights(last_checkpoint(whole))
            assert all(ours[name].equal(weight) for name, weight in theirs.items())
    else:
        start = config.student.model_dir
        assert start is not None
        assert_same_run(config, run_config(workspace, REFERENCE), start)


def fresh_experts_are_no_copies(workspace: Path) -> None:
    """What two ranks share is the same on both; all experts differ."""
    experts = {"num_experts": 4, "ffn_hidden_size": 32}
    with layout(expert_parallel=2):
        [model] = build_model(student_config(VOCAB_PADDED, experts=experts), seed=3)
        for name, weight in model.named_parameters():
            everyone = [torch.empty_like(weight) for _ in range(2)]
            dist.all_gather(everyone, weight.detach())
            assert everyone[0].equal(everyone[1]) != ("experts" in name), name
            if "local_experts.1." in name:
                other = model.get_parameter(name.replace("experts.1.", "experts.0."))
                assert not weight.equal(other)
                assert abs(weight.std() / other.std() - 1.0) < 0.2
