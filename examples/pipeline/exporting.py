"""The trained student for the rest of the world, and the proof that it is the same model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from pipeline.run import Run
from pipeline.setup import Setup, text_file
from pipeline.stages import stage

NUM_TOKENS = 64


def export_student(setup: Setup, run: Run, hf_dir: Path) -> float:
    """Write the student of `run` in Hugging Face format.

    Returns the largest difference between its logits in transformers and in Megatron, on the first
    tokens of a held-out document.
    """
    from bgkd_megatron.convert.to_hf import export

    log = run.directory / "export.log"
    comparison = run.directory / "export.json"
    stage("student in Hugging Face format", hf_dir,
          partial(export, run.checkpoint, hf_dir), log=log)  # fmt: skip
    stage("its logits in transformers and in Megatron", comparison,
          partial(_compare, setup, run, hf_dir, comparison), log=log)  # fmt: skip
    return float(json.loads(comparison.read_text())["largest_difference"])


def _compare(setup: Setup, run: Run, hf_dir: Path, comparison: Path) -> None:
    import torch

    from bgkd_megatron.convert.verify import hugging_face_logits, megatron_logits
    from bgkd_megatron.tokenizer import load_tokenizer

    with text_file(setup.root, setup.domains[0], "heldout").open(encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    ids = torch.tensor([load_tokenizer(hf_dir)(text)["input_ids"][:NUM_TOKENS]])
    ours, theirs = megatron_logits(run.checkpoint, ids), hugging_face_logits(hf_dir, ids)
    result = {
        "tokens": ids.numel(),
        "largest_difference": (ours - theirs).abs().max().item(),
        "largest_logit": theirs.abs().max().item(),
    }
    comparison.write_text(json.dumps(result, indent=2) + "\n")
