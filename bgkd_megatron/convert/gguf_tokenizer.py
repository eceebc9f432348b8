"""The byte-level BPE tokenizer inside a GGUF file, as a Hugging Face tokenizer.

transformers reads such tokenizers too, but cuts text before numbers like GPT-2 whatever the file
says; a model then sees other tokens than it was trained on ("\\n\\n1" as three tokens, not two).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bgkd_megatron.convert.gguf_weights import field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# tokenizer.ggml.pre -> what is cut off before the byte-level splitting of GPT-2.
PRE_TOKENIZERS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
}


def read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The file's tokenizer with its special tokens and chat template.

    Raises ValueError for a kind of tokenizer that cannot be rebuilt exactly.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    kind = field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre", "gpt-2")
    if kind[0] != "gpt2" or kind[1] not in PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF tokenizer {kind[0]}/{kind[1]} cannot be rebuilt exactly (only gpt2 with "
            f"{', '.join(PRE_TOKENIZERS)}): give the Hugging Face tokenizer with --tokenizer"
        )
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    try:
        bpe = models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges)
    except Exception as error:  # all that the tokenizers package raises
        raise ValueError(f"the GGUF tokenizer is damaged: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*PRE_TOKENIZERS[kind[1]], pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = field(reader, "tokenizer.ggml.token_type")
    for token, type_ in zip(tokens, types, strict=True):
        if type_ == TokenType.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif type_ == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=field(reader, "tokenizer.chat_template", "") or None,
        model_max_length=field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        **_named_tokens(reader, tokens),
    )


def _named_tokens(reader: GGUFReader, tokens: list[str]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {ours: field(reader, f"tokenizer.ggml.{theirs}_token_id", -1)
           for ours, theirs in names.items()}  # fmt: skip
    return {f"{name}_token": tokens[id] for name, id in ids.items() if id >= 0}
