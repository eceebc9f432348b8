"""Tokens of a chat and which of them are learned: those that the assistant itself has to produce.

The tokenizer's own chat template decides how a chat looks.  Where the template marks the generated
part ({% generation %}), its marks are used.  Otherwise the chat is rendered turn by turn: what an
assistant's turn adds to the prompt before it is what the model has to produce.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bgkd_megatron.data.documents import Message
from bgkd_megatron.data.records import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoded:
    """The chat as tokens; loss_mask is 1 on the assistant's tokens and its end-of-turn token.

    What a template puts behind the end-of-turn token (ChatML: a line feed) is never produced by
    the model and so not learned.
    Raises ValueError when the tokenizer has no chat template, when the template refuses the
    messages, when turns cannot be told apart in its output, or when nothing is learned.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError(
            "the tokenizer has no (single) chat template: add chat_template.jinja to its "
            'directory, or give plain {"text"} records'
        )
    if "{% generation %}" in template or "{%- generation" in template:
        encoded = _encode_by_marks(tokenizer, messages)
    else:
        encoded = _encode_by_prefixes(tokenizer, messages)
    if not any(encoded.loss_mask):
        raise ValueError(
            "the chat template leaves nothing of the assistant to learn in this chat: check its "
            "{% generation %} marks, if it has any"
        )
    return encoded


def _encode_by_marks(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoded:
    marked = _apply_template(
        tokenizer, messages, return_dict=True, return_assistant_tokens_mask=True
    )
    return Encoded(list(marked["input_ids"]), list(marked["assistant_masks"]))


def _encode_by_prefixes(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoded:
    text = _render(tokenizer, messages, prompt=False)
    ids = _tokenize(tokenizer, text)
    loss_mask = [0] * len(ids)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise ValueError(
                "the chat begins with the assistant, and a template cannot render the empty prompt "
                "before it: put a message of system or user first, or mark the assistant's part in "
                "the template with {% generation %}"
            )
        prompt = _render(tokenizer, messages[:index], prompt=True)
        through_turn = _render(tokenizer, messages[: index + 1], prompt=False)
        if not (through_turn.startswith(prompt) and text.startswith(through_turn)):
            raise ValueError(
                f"the chat template renders messages up to number {index} differently when others "
                "follow, so the assistant's part cannot be found: mark it with {% generation %}"
            )
        start = _tokens_in_prefix(tokenizer, prompt, ids, index)
        end = _tokens_in_prefix(tokenizer, through_turn, ids, index)
        end = _cut_after_end_of_turn(tokenizer, ids, start, end, special)
        loss_mask[start:end] = [1] * (end - start)
    return Encoded(ids, loss_mask)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, prompt: bool) -> str:
    return str(_apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=prompt))


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], **options: bool
) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # a template is a program: it may raise anything
        raise ValueError(f"the chat template refuses this chat: {error!r}") from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template has written the special tokens already.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _tokens_in_prefix(
    tokenizer: PreTrainedTokenizerBase, prefix: str, ids: list[int], index: int
) -> int:
    """How many of `ids` make up the text `prefix`; refuses a token that lies across its end."""
    prefix_ids = _tokenize(tokenizer, prefix)
    if ids[: len(prefix_ids)] != prefix_ids:
        raise ValueError(
            f"a token lies across the border of message {index} (its text begins or ends with "
            f"{prefix[-8:]!r}): remove white space at the ends of the message"
        )
    return len(prefix_ids)


def _cut_after_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int, special: set[int]
) -> int:
    """The end of the turn without white space that the template puts behind its special token."""
    for last in range(end - 1, start - 1, -1):
        if ids[last] in special:
            return last + 1
        if str(tokenizer.decode([ids[last]])).strip():
            break
    return end
