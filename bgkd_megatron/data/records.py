"""What the modules of this package hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Encoded(NamedTuple):
    """ids: token ids of one document.  loss_mask: 1 where the token is a target, same length."""

    ids: list[int]
    loss_mask: list[int]


@dataclass
class Summary:
    """What a dataset holds.

    vocab_size: of the tokenizer, no id is as large; training compares it with the model's.
    loss_tokens: how many of the tokens are targets.
    """

    vocab_size: int
    documents: int = 0
    tokens: int = 0
    loss_tokens: int = 0
