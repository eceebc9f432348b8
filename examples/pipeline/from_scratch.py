"""The fall-back that needs no network: a small teacher, trained here on texts that Python brings.

A tokenizer and a six-layer teacher are trained on the language reference and the standard library;
the student is the teacher without two of its layers.  It shows every part of the real job at work,
and says nothing about real models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.run import Run, train
from pipeline.setup import CONFIGS, Setup, make_datasets, make_texts, text_file
from pipeline.stages import stage
from pipeline.texts import manual_documents, python_documents

DOMAINS = {"manual": manual_documents, "python": python_documents}
VOCAB_SIZE = 4096
EOD_TOKEN = "<|endoftext|>"
DROPPED_LAYERS = "2-3"
STEPS = 100


def make(root: Path, teacher_steps: int) -> Setup:
    """Make texts, tokenizer, teacher and student where they are not there yet."""
    from bgkd_megatron.convert.from_hf import convert
    from bgkd_megatron.convert.to_hf import export

    log, domains = root / "setup.log", tuple(DOMAINS)
    make_texts(root, DOMAINS)
    untrained, start = root / "untrained-hf", root / "untrained"
    stage("tokenizer and untrained teacher", untrained, partial(_write_untrained, root), log=log)
    make_datasets(root, domains, untrained, EOD_TOKEN)
    stage("untrained teacher for Megatron", start, partial(convert, untrained, start), log=log)

    run = Run(root / "teacher", teacher_steps)
    setup = Setup(root, run.checkpoint, start, domains, CONFIGS / "from_scratch_teacher.yaml", 0)
    train("training of the teacher", setup, run, with_teacher=False)

    teacher_hf, student = root / "teacher-hf", root / "student"
    stage("teacher in Hugging Face format", teacher_hf,
          partial(export, run.checkpoint, teacher_hf), log=log)  # fmt: skip
    stage(f"student: the teacher without its layers {DROPPED_LAYERS}", student,
          partial(convert, teacher_hf, student, dropped=DROPPED_LAYERS), log=log)  # fmt: skip
    config = CONFIGS / "from_scratch.yaml"
    return Setup(root, run.checkpoint, student, domains, config, STEPS)


def _write_untrained(root: Path) -> None:
    """A tokenizer trained on the training texts, and a Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from bgkd_megatron.convert.output_directory import output_directory

    set_seed(1234)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            intermediate_size=510,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )
    with output_directory(root / "untrained-hf") as directory:
        _train_tokenizer(root, directory)
        model.save_pretrained(directory)


def _train_tokenizer(root: Path, directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _training_texts(root),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[EOD_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOD_TOKEN)
    fast.save_pretrained(directory)


def _training_texts(root: Path) -> Iterator[str]:
    for domain in DOMAINS:
        with text_file(root, domain, "train").open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
