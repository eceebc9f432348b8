"""Silence about what is not for the user of this program."""

from __future__ import annotations

import logging
import warnings

__all__ = ["silence_megatron"]


def silence_megatron() -> None:
    """Megatron and torch.distributed.checkpoint announce deprecations and missing optional packages
    on every rank; none of it is for the user of this program."""
    warnings.filterwarnings(
        "ignore", module=r"megatron\.|torch\.|bgkd_megatron\.megatron\.cpu_compat"
    )
    logging.getLogger("megatron").setLevel(logging.ERROR)
