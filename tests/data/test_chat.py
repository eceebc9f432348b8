"""Which tokens of a chat are learned: what the assistant says and its end-of-turn token."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import CHATML, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from bgkd_megatron.data.chat import encode_chat
from bgkd_megatron.data.documents import ChatDocument, Message
from bgkd_megatron.data.encode import encode_documents
from bgkd_megatron.data.records import Encoded

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes,\n4."},
]
GENERATION_MARKS = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
)


def learned(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> list[str]:
    """The text of each run of learned tokens."""
    runs = groupby(zip(*encoded, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([id for id, _ in run]) for is_learned, run in runs if is_learned]


def test_only_answers_and_their_end_are_learned() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_chat(tokenizer, CHAT)
    assert learned(tokenizer, encoded) == ["4<|im_end|>", "Yes,\n4.<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_generation_marks_of_the_template_agree_with_prefixes() -> None:
    assert encode_chat(byte_tokenizer(GENERATION_MARKS), CHAT) == encode_chat(
        byte_tokenizer(CHATML), CHAT
    )


def test_an_answer_without_end_token_is_learned_with_its_line_feed() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = byte_tokenizer(template)
    assert learned(tokenizer, encode_chat(tokenizer, CHAT)) == ["4\n", "Yes,\n4.\n"]


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda s: s.strip())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4))
def test_whatever_is_said_exactly_the_answers_are_learned(turns: list[tuple[str, str]]) -> None:
    tokenizer = byte_tokenizer()
    messages: list[Message] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    expected = [answer + "<|im_end|>" for _, answer in turns]
    assert learned(tokenizer, encode_chat(tokenizer, messages)) == expected


def test_the_separator_behind_a_chat_is_not_learned() -> None:
    tokenizer = byte_tokenizer()
    eod = tokenizer.eos_token_id
    ((where, encoded),) = encode_documents([ChatDocument(CHAT, "f:1")], tokenizer, eod)
    assert where == "f:1"
    assert (encoded.ids[-1], encoded.loss_mask[-1]) == (eod, 0)
    assert encoded.ids[:-1] == encode_chat(tokenizer, CHAT).ids


@pytest.mark.parametrize("kept", ["loop.last", "loop.last or message['role'] == 'user'"])
def test_a_template_that_rewrites_earlier_turns_is_refused(kept: str) -> None:
    forgetful = CHATML.replace("message['content']", f"(message['content'] if {kept} else '...')")
    with pytest.raises(ValueError, match=r"differently when others follow.*generation"):
        encode_chat(byte_tokenizer(forgetful), CHAT[1:])


def test_a_token_across_the_start_of_an_answer_is_refused() -> None:
    tokenizer = byte_tokenizer(merges=(("\u010a", "\u010a"),))  # byte-level letter of a line feed
    chat = [CHAT[1], {"role": "assistant", "content": "\n\n4"}]
    with pytest.raises(ValueError, match="across the border"):
        encode_chat(tokenizer, chat)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        (
            "{{ messages[0]['content'] }}{% generation %}{% endgeneration %}",
            "leaves nothing of the assistant to learn",
        ),
    ],
)
def test_what_the_template_refuses_is_reported_with_its_place(template: str, reason: str) -> None:
    documents = [ChatDocument(CHAT, "chats.jsonl:3")]
    with pytest.raises(ValueError, match=rf"^chats\.jsonl:3: .*{reason}"):
        list(encode_documents(documents, byte_tokenizer(template), 0))


def test_a_chat_that_begins_with_the_assistant_needs_marks() -> None:
    chat = CHAT[2:4]
    with pytest.raises(ValueError, match=r"begins with the assistant.*or mark"):
        encode_chat(byte_tokenizer(CHATML), chat)
    marked = byte_tokenizer(GENERATION_MARKS)
    assert learned(marked, encode_chat(marked, chat)) == ["4<|im_end|>"]


def test_a_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no .*chat template"):
        encode_chat(byte_tokenizer(chat_template=None), CHAT)
