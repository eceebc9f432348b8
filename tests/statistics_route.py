"""The objectives by their statistics, in any floating dtype: what HybridObjective makes of those of
the dense reference."""

from __future__ import annotations

from fdiv_checks import dense_fdiv
from torch import Tensor

from bgkd_megatron import reference
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, TokenLosses
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.statistics import Feature


def by_statistics(
    z: Tensor,
    t: Tensor | None,
    labels: Tensor | None,
    config: ObjectiveConfig,
    *,
    vocab_size: int,
    progress: float = 0.0,
    sequences: SequenceLayout | None = None,
) -> TokenLosses:
    """Arguments as in reference.hybrid_loss, and how the tokens lie in sequences."""
    objective = HybridObjective(config, vocab_size)
    stats = reference.vocab_stats(
        z,
        t,
        labels,
        vocab_size=vocab_size,
        features=objective.features & ~(Feature.LABEL if labels is None else Feature(0)),
        temperature=objective.temperature(progress),
        power_exponent=objective.power_exponent,
    )
    if objective.fdivergence is not None:
        assert t is not None
        rows = stats.valid.nonzero().squeeze(-1)
        value = dense_fdiv(z[rows, :vocab_size], t[rows, :vocab_size], objective.fdivergence)
        nothing = z.new_zeros(len(z))
        stats = stats._replace(fdivergence=nothing.index_copy(0, rows, value))
    return objective(stats, progress, sequences)
