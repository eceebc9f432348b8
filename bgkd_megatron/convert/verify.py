"""Does a converted model compute the same as the original?  Logits of both, on the same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bgkd_megatron.megatron import cpu_compat
from bgkd_megatron.megatron.model_config import ModelConfig


@torch.no_grad()
def megatron_logits(model_dir: Path, ids: Tensor) -> Tensor:
    """Logits [b, s, vocab_size] float32 of a model directory, computed at TP 1.  ids: [b, s].

    On a machine without a GPU it installs cpu_compat, which changes torch for the rest of this
    process.
    """
    cpu_compat.install()
    from bgkd_megatron.megatron.model import build_model
    from bgkd_megatron.megatron.parallel import device, process_groups
    from bgkd_megatron.megatron.weights import load_weights

    config = ModelConfig.read(model_dir)
    with process_groups():
        model = build_model(config)
        load_weights(model, model_dir)
        length = ids.shape[1]
        positions = torch.arange(length, device=device()).expand_as(ids)
        future = torch.ones(1, 1, length, length, dtype=torch.bool, device=device()).triu(1)
        logits = model[0].eval()(ids.to(device()), positions, future)
        return config.final_logits(logits)[..., : config.vocab_size].cpu()


@torch.no_grad()
def hugging_face_logits(hf_dir: Path, ids: Tensor) -> Tensor:
    """Logits [b, s, vocab_size] float32 of a Hugging Face directory, by transformers."""
    from transformers import AutoModelForCausalLM  # takes seconds to import

    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32, local_files_only=True)
    logits: Tensor = model(ids).logits
    return logits
