"""The files of a Hugging Face tokenizer, in Hugging Face and model directories alike."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer

# Everything beside the weights that a user of the model needs; copied as it is.
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*",
    "merges.txt", "generation_config.json",
)  # fmt: skip


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer, chat template and generation settings.  Raises FileNotFoundError."""
    if not (source / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{source} holds no tokenizer (no tokenizer_config.json)")
    target.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy(file, target)


def check_tokenizer(directory: Path, vocab_size: int) -> None:
    """Raise ValueError when DIR/tokenizer.json is damaged or has more tokens than the model.

    Does nothing when the tokenizer is stored in another form.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return
    try:
        size = Tokenizer.from_file(str(file)).get_vocab_size()
    except Exception as error:  # all that the tokenizers package raises
        raise ValueError(f"{file} cannot be read: {error}") from error
    if size > vocab_size:
        raise ValueError(
            f"the tokenizer has {size} tokens and the model a vocabulary of only {vocab_size}: it "
            "is another model's tokenizer, or vocab_size was changed"
        )
