"""Where the layers of a model go in a pipeline.  Free of torch and Megatron."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["stage_layers"]


def stage_layers(
    num_layers: int,
    stages: int,
    layers_per_stage: Sequence[int] | None = None,
    mtp_layers: int = 0,
) -> list[list[str]]:
    """What each stage of a pipeline holds, in the order of the layers, as Megatron names it.

    layers_per_stage: by default as even as can be; the first stages take what is left over, since
    the last one has the output layer and the loss.
    Raises ValueError when they do not add up, or when a stage has no layer.
    """
    if num_layers < stages:
        raise ValueError(
            f"{num_layers} layers cannot be cut into {stages} stages: lower pipeline_parallel or "
            "virtual_pipeline"
        )
    if layers_per_stage is None:
        layers, left = divmod(num_layers, stages)
        layers_per_stage = [layers + (stage < left) for stage in range(stages)]
    if len(layers_per_stage) != stages or sum(layers_per_stage) != num_layers:
        raise ValueError(
            f"layers_per_stage must be {stages} numbers (pipeline_parallel x virtual_pipeline), in "
            f"all {num_layers} layers, got {list(layers_per_stage)}"
        )
    held = [["decoder"] * layers for layers in layers_per_stage]
    held[0].insert(0, "embedding")
    held[-1] += ["mtp"] * mtp_layers + ["loss"]
    return held
