"""Exporting what a tensor-parallel training run saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from megatron_process import Call
from random_models import weights_in, write_hugging_face

from bgkd_megatron.convert.from_hf import convert
from bgkd_megatron.convert.to_hf import export
from bgkd_megatron.data.prepare import prepare


def test_a_checkpoint_of_two_ranks(tmp_path: Path, in_megatron_process: Call) -> None:
    """With a learning rate that changes no bit, export returns the weights that went in.

    The vocabulary of 301 is padded to 512 rows on two ranks and to 384 on one.
    """
    write_hugging_face(tmp_path / "hf", "llama-tied")
    in_megatron_process(convert, tmp_path / "hf", tmp_path / "model")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "some words " * 40}))
    tokenizer, prefix = tmp_path / "model" / "tokenizer", tmp_path / "text"
    in_megatron_process(prepare, [tmp_path / "text.jsonl"], tokenizer, prefix)

    (tmp_path / "run.yaml").write_text("")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "bgkd_megatron.train"]
    settings = {
        "student.model_dir": tmp_path / "model",
        "data.train": f"[{json.dumps(str(prefix))}]",
        "data.seq_length": 16,
        "parallel.tensor_parallel": 2,
        "objective.weighting": "static",
        "objective.soft_weight": 0,
        "optimizer.lr": 1.0e-30,
        "training.steps": 1,
        "training.global_batch_size": 1,
        "training.precision": "fp32",
        "checkpoint.dir": tmp_path / "checkpoints",
        "logging.dir": tmp_path / "logs",
        "logging.tensorboard": "false",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run([*command, "--config", str(tmp_path / "run.yaml"), *overrides], check=True)

    checkpoint = tmp_path / "checkpoints" / "iter_0000001"
    in_megatron_process(export, checkpoint, tmp_path / "back")
    before, after = weights_in(tmp_path / "hf"), weights_in(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, weight in before.items():
        assert torch.equal(after[key], weight), key
