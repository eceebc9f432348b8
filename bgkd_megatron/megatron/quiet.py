"""Silence about what is not for the user of this program."""

from __future__ import annotations

import logging
import warnings

__all__ = ["silence_megatron"]

# cpu_compat calls torch on behalf of Megatron.
_MODULES = r"megatron\.|torch\.|bgkd_megatron\.megatron\.cpu_compat"
_MISSING_OR_DEPRECATED = (
    r"(Transformer Engine and )?Apex (is|are) not installed",
    r"MimoModelConfig is experimental",
    r"full scope is deprecated",
    r"The argument order of load has been changed",
    r"torch.distributed is disabled, unavailable or uninitialized",
)


def silence_megatron() -> None:
    """Megatron and torch announce deprecations and missing optional packages, on every rank: none
    is for the user of this program.  All other warnings show, and the errors of Megatron's log.
    """
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=_MODULES)
    for message in _MISSING_OR_DEPRECATED:
        warnings.filterwarnings("ignore", message, UserWarning, module=_MODULES)
    logging.getLogger("megatron").setLevel(logging.ERROR)
