"""The oracle: the same mathematics in dense PyTorch on whole-vocabulary logits, with autograd.

Two independent routes to the same numbers, in any floating dtype (tests use float64):

* `hybrid_loss`: the objective by its definition, from log-softmax and sums over the vocabulary.
* `vocab_stats`: the statistics from log-sum-exp and means of logit differences, which is how they
  split over the shards of a vocabulary; what the kernels must reproduce.

Both need memory for several [N, V] tensors.  Use bgkd_megatron.vocab_stats to train.
Source: arXiv 2605.26246 (hybrid losses); Hinton et al. 2015 (temperature).
"""

from bgkd_megatron.reference.objective import hybrid_loss
from bgkd_megatron.reference.statistics import vocab_stats

__all__ = ["hybrid_loss", "vocab_stats"]
