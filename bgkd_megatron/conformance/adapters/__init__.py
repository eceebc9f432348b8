"""Losses of packages that pip installs, each behind one function.

A file per package.  It imports the package only when a loss is made, on a rank of its own process.
"""

from __future__ import annotations

from bgkd_megatron.conformance.adapters import (
    liger,
    megatron_core,
    modelopt,
    ms_swift,
    nemo_automodel,
    ours,
    pytorch,
    transformer_engine,
)
from bgkd_megatron.conformance.candidate import Candidate

__all__ = ["CANDIDATES", "adapted"]

CANDIDATES: dict[str, Candidate] = {
    name: candidate
    for package in (
        ours,
        megatron_core,
        modelopt,
        nemo_automodel,
        ms_swift,
        liger,
        transformer_engine,
        pytorch,
    )
    for name, candidate in package.CANDIDATES.items()
}
"""By the name that the command takes."""


def adapted(name: str) -> Candidate:
    """The candidate of that name; KeyError if there is none."""
    return CANDIDATES[name]
