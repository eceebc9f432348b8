"""Documents -> token ids with their loss masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bgkd_megatron.data.chat import encode_chat
from bgkd_megatron.data.documents import ChatDocument, Document, TextDocument
from bgkd_megatron.data.records import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents handed to the tokenizer at once: it works on them in parallel threads.
BATCH_SIZE = 256


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer stored in `directory`; never looks on the network.

    Raises FileNotFoundError, or ValueError for a directory without a usable tokenizer.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"tokenizer directory {directory} does not exist")
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # damaged files: KeyError, JSONDecodeError, plain Exception, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{directory} holds no usable tokenizer: {reason}") from error


def end_of_document_id(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> int:
    """The id that ends a document: of `token`, or the tokenizer's end-of-sequence token."""
    token = token or tokenizer.eos_token
    if token is None:
        raise ValueError("the tokenizer has no end-of-sequence token: name one with --eod-token")
    id = tokenizer.get_vocab().get(token)
    if id is None:
        raise ValueError(f"the end-of-document token {token!r} is not in the vocabulary")
    return id


def encode_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, eod_id: int
) -> Iterator[Encoded]:
    """Each document as tokens with `eod_id` at its end, streamed in batches.

    Text: every token is a target, special tokens (such as a first BOS) are added as the tokenizer
    does for its model.  Chat: see `encode_chat`.  ValueErrors begin with the document's place.
    """
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, BATCH_SIZE)):
        texts = [document.text for document in batch if isinstance(document, TextDocument)]
        text_ids = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else ())
        for document in batch:
            if isinstance(document, ChatDocument):
                yield _chat(document, tokenizer, eod_id)
            else:
                ids = list(next(text_ids))
                if ids[-1:] != [eod_id]:  # some tokenizers end every text with it themselves
                    ids.append(eod_id)
                yield Encoded(ids, [1] * len(ids))


def _chat(document: ChatDocument, tokenizer: PreTrainedTokenizerBase, eod_id: int) -> Encoded:
    try:
        ids, loss_mask = encode_chat(tokenizer, document.messages)
    except ValueError as error:
        raise ValueError(f"{document.where}: {error}") from error
    # The assistant ends its turn with the template's token; the separator behind is no target.
    return Encoded([*ids, eod_id], [*loss_mask, 0])
