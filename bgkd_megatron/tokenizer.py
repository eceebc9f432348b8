"""The Hugging Face tokenizer of a model: its files, and the one way in which it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TOKENIZER_FILES",
    "copy_tokenizer",
    "end_of_document_id",
    "load_tokenizer",
    "require_rows",
    "rows_needed",
]

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*",
    "merges.txt", "generation_config.json",
)  # fmt: skip
"""Everything beside the weights that a user of the model needs; copied as it is."""


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer, chat template and generation settings.  Raises FileNotFoundError."""
    if not (source / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{source} holds no tokenizer (no tokenizer_config.json)")
    target.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy(file, target)


def load_tokenizer(directory: Path, *, origin: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer stored in `directory`; never looks on the network.

    origin: where its files were taken from, which errors then name.
    Raises FileNotFoundError, or ValueError for a directory without a usable tokenizer.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"tokenizer directory {directory} does not exist")
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # damaged files: KeyError, JSONDecodeError, plain Exception, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{origin or directory} holds no usable tokenizer: {reason}") from error


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest vocabulary of a model that has a row for every token.

    More than there are tokens where their ids have gaps.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def require_rows(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise ValueError when a model with this vocabulary has no row for some token."""
    if (needed := rows_needed(tokenizer)) > vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {needed - 1}, so it needs a vocabulary of {needed}, and "
            f"the model's is only {vocab_size}: it is another model's tokenizer, or vocab_size was "
            "changed"
        )


def end_of_document_id(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> int:
    """The id that ends a document: of `token`, or the tokenizer's end-of-sequence token."""
    token = token or tokenizer.eos_token
    if token is None:
        raise ValueError("the tokenizer has no end-of-sequence token: name one with --eod-token")
    id = tokenizer.get_vocab().get(token)
    if id is None:
        raise ValueError(f"the end-of-document token {token!r} is not in the vocabulary")
    return id
