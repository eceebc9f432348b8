"""Documents -> token ids with their loss masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bgkd_megatron.data.chat import encode_chat
from bgkd_megatron.data.documents import ChatDocument, Document, TextDocument
from bgkd_megatron.data.records import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents handed to the tokenizer at once: it works on them in parallel threads.
BATCH_SIZE = 256


def encode_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, eod_id: int
) -> Iterator[tuple[str, Encoded]]:
    """Each document's place, and its tokens with `eod_id` at their end, streamed in batches.

    Text: every token is a target, special tokens (such as a first BOS) are added as the tokenizer
    does for its model.  Chat: see `encode_chat`.  ValueErrors begin with the document's place.
    """
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, BATCH_SIZE)):
        texts = [document.text for document in batch if isinstance(document, TextDocument)]
        text_ids = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else ())
        for document in batch:
            if isinstance(document, ChatDocument):
                yield document.where, _chat(document, tokenizer, eod_id)
            else:
                ids = list(next(text_ids))
                if ids[-1:] != [eod_id]:  # some tokenizers end every text with it themselves
                    ids.append(eod_id)
                yield document.where, Encoded(ids, [1] * len(ids))


def _chat(document: ChatDocument, tokenizer: PreTrainedTokenizerBase, eod_id: int) -> Encoded:
    try:
        ids, loss_mask = encode_chat(tokenizer, document.messages)
    except ValueError as error:
        raise ValueError(f"{document.where}: {error}") from error
    # The assistant ends its turn with the template's token; the separator behind is no target.
    return Encoded([*ids, eod_id], [*loss_mask, 0])
