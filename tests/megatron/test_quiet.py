"""What is silenced, and that nothing else is."""

from __future__ import annotations

import warnings

import pytest

from bgkd_megatron.megatron.quiet import silence_megatron

APEX = "Transformer Engine and Apex are not installed. Falling back to Torch optimizers."


@pytest.mark.parametrize(
    ("category", "message", "module", "shows"),
    [
        (DeprecationWarning, "old", "megatron.core.transformer.mlp", False),
        (FutureWarning, "old", "torch.distributed.c10d_logger", False),
        (FutureWarning, "old", "bgkd_megatron.megatron.cpu_compat", False),
        (UserWarning, APEX, "megatron.core.optimizer", False),
        (UserWarning, "Apex is not installed. Falling", "megatron.core.models.backends", False),
        (UserWarning, APEX, "transformers", True),
        (UserWarning, "the sequence is longer than 4096", "megatron.core.datasets", True),
        (UserWarning, "lr_scheduler.step() before optimizer.step()", "torch.optim", True),
        (RuntimeWarning, "overflow", "torch.nn", True),
        (DeprecationWarning, "old", "bgkd_megatron.loss", True),
    ],
)
def test_silence(category: type[Warning], message: str, module: str, shows: bool) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence_megatron()
        warnings.warn_explicit(message, category, "file.py", 1, module=module)
    assert len(shown) == shows
