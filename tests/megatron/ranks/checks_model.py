"""Models: the same on every layout, padding, teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor
from world import SEQ_LENGTH, VOCAB_EVEN, VOCAB_PADDED, layout, load, student_config

from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.model import build_model
from bgkd_megatron.megatron.weights import load_weights
from bgkd_megatron.schedule import Microbatch
from bgkd_megatron.teacher.frozen import FrozenTeacher
from bgkd_megatron.teacher.states import TeacherStates

Check = Callable[[Path], None]


def checks(world_size: int) -> dict[str, Check]:
    found: dict[str, Check] = {
        "fresh_weights_do_not_depend_on_the_layout": fresh_weights_do_not_depend_on_the_layout,
        "logits_do_not_depend_on_the_layout": logits_do_not_depend_on_the_layout,
        "padding_is_zero": padding_is_zero,
        "teacher_is_frozen": teacher_is_frozen,
    }
    if world_size == 1:
        found["edited_architecture_is_refused"] = edited_architecture_is_refused
    if world_size > 1:
        found["sequence_parallel_teacher_states"] = sequence_parallel_teacher_states
    return found


def batch(vocab_size: int) -> tuple[Tensor, Tensor]:
    """tokens and positions, [b, s]; every rank holds some of the tokens."""
    tokens = torch.arange(2 * SEQ_LENGTH).view(2, SEQ_LENGTH) * 37 % vocab_size
    return tokens, torch.arange(SEQ_LENGTH).expand(2, -1)


def all_logits(model: torch.nn.Module, vocab_size: int) -> Tensor:
    """[b, s, vocab_size], gathered over the ranks."""
    logits = model(*batch(vocab_size), None)
    return gather_from_tensor_model_parallel_region(logits)[..., :vocab_size]


def same_as_alone(workspace: Path, name: str, value: Tensor) -> None:
    """Compare with the single process, which runs first and leaves its value behind."""
    path = workspace / f"{name}.pt"
    if dist.get_world_size() == 1:
        torch.save(value.detach(), path)
    else:
        torch.testing.assert_close(value.detach(), torch.load(path), rtol=1e-4, atol=1e-5)


def edited_architecture_is_refused(workspace: Path) -> None:
    """Fewer tokens or tied embeddings fit the stored tensors: only the record beside them tells."""
    root = workspace / "edited"
    shutil.copytree(workspace / f"student_{VOCAB_PADDED}", root)
    config = student_config(VOCAB_PADDED)
    edits = {"vocab_size": 300, "tie_embeddings": True, "qk_layernorm": False}
    with layout():
        for field, value in edits.items():
            edited = config.model_copy(update={field: value})
            edited.write(root)
            with pytest.raises(ConfigError, match=f"{field} is {value}, was"):
                load_weights(build_model(edited), root)
        longer = config.model_copy(update={"max_position_embeddings": 64, "rope_base": 1e6})
        longer.write(root)
        load_weights(build_model(longer), root)


def fresh_weights_do_not_depend_on_the_layout(workspace: Path) -> None:
    with layout(dist.get_world_size()):
        [model] = build_model(student_config(VOCAB_EVEN), seed=5)
        same_as_alone(workspace, "fresh", all_logits(model, VOCAB_EVEN))


def logits_do_not_depend_on_the_layout(workspace: Path) -> None:
    with layout(dist.get_world_size()):
        for role in ("student", "teacher"):
            for vocab_size in (VOCAB_EVEN, VOCAB_PADDED):
                model = load(workspace, role, vocab_size)
                logits = all_logits(model, vocab_size)
                assert logits.std() > 0.1  # or anything would pass
                same_as_alone(workspace, f"logits_{role}_{vocab_size}", logits)


def padding_is_zero(workspace: Path) -> None:
    """Rows that the checkpoint does not have must not be what was in memory before."""
    with layout(dist.get_world_size()):
        model = load(workspace, "student", VOCAB_PADDED)
        rank = parallel_state.get_tensor_model_parallel_rank()
        for weight in (model.output_layer.weight, model.embedding.word_embeddings.weight):
            ids = rank * weight.shape[0] + torch.arange(weight.shape[0])
            assert (weight[ids >= VOCAB_PADDED] == 0).all()
            assert (weight[ids < VOCAB_PADDED] != 0).any(dim=1).all()


def teacher_states(model: GPTModel, tokens: Tensor, positions: Tensor) -> TeacherStates:
    [states] = FrozenTeacher([model]).states([Microbatch(tokens, tokens, positions)])
    return states


def teacher_is_frozen(workspace: Path) -> None:
    with layout(dist.get_world_size()):
        model = load(workspace, "teacher", VOCAB_PADDED).train()
        states = teacher_states(model, *batch(VOCAB_PADDED))
        assert not model.training
        assert states.hidden.shape == (SEQ_LENGTH, 2, 96)
        logits = states.logits()
        for tensor in (states.hidden, logits, *model.parameters()):
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
        gathered = gather_from_tensor_model_parallel_region(logits)[..., :VOCAB_PADDED]
        same_as_alone(workspace, "states_logits", gathered)
        torch.testing.assert_close(
            gathered.transpose(0, 1), all_logits(model, VOCAB_PADDED), rtol=1e-5, atol=1e-5
        )


def sequence_parallel_teacher_states(workspace: Path) -> None:
    with layout(dist.get_world_size()):
        tokens, positions = batch(VOCAB_PADDED)
        length = SEQ_LENGTH - SEQ_LENGTH % dist.get_world_size()
        cut = tokens[:, :length], positions[:, :length]
        whole = teacher_states(load(workspace, "teacher", VOCAB_PADDED), *cut)
        model = load(workspace, "teacher", VOCAB_PADDED, sequence_parallel=True)
        parts = teacher_states(model, *cut)
        torch.testing.assert_close(parts.hidden, whole.hidden, rtol=1e-5, atol=1e-5)
