"""Checks losses on vocabulary-parallel logits, of whatever package: value, gradient, cost.

`bgkd-conformance` runs it; docs/conformance.md says what it checks and how to add a loss.
"""

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting

__all__ = ["Candidate", "Loss", "Setting"]
