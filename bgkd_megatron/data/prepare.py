"""Tokenize text and chats into Megatron's indexed dataset.

python -m bgkd_megatron.data.prepare --tokenizer DIR --input a.jsonl texts/ b.txt --output PREFIX

See documents.py for the formats that are read and indexed.py for the files that are written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bgkd_megatron import command
from bgkd_megatron.data.documents import read_documents
from bgkd_megatron.data.encode import encode_documents
from bgkd_megatron.data.records import Summary
from bgkd_megatron.megatron import cpu_compat
from bgkd_megatron.tokenizer import end_of_document_id, load_tokenizer, rows_needed


def prepare(
    inputs: Sequence[Path], tokenizer_dir: Path, prefix: Path, eod_token: str | None = None
) -> Summary:
    """Write the dataset PREFIX from `inputs` and return its Summary.

    eod_token: ends each document; the tokenizer's end-of-sequence token when None.
    Raises ValueError or OSError (FileExistsError: nothing is ever overwritten); then nothing is
    written.  Without a GPU it installs cpu_compat, which changes torch for the rest of the process:
    the writer is Megatron's own, and Megatron cannot be imported otherwise.
    """
    cpu_compat.install()
    from bgkd_megatron.data.indexed import IndexedWriter

    tokenizer = load_tokenizer(tokenizer_dir)
    eod_id = end_of_document_id(tokenizer, eod_token)
    with IndexedWriter(prefix, vocab_size=rows_needed(tokenizer)) as writer:
        for where, document in encode_documents(read_documents(inputs), tokenizer, eod_id):
            writer.add(document, where)
    return writer.summary


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bgkd_megatron.data.prepare",
        description="Tokenize text and chats into Megatron's indexed dataset.",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR",
                        help="Hugging Face tokenizer directory")  # fmt: skip
    parser.add_argument("--input", type=Path, required=True, nargs="+", metavar="PATH",
                        help=".jsonl file, text file, or directory of .txt and .jsonl")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX",
                        help="writes PREFIX.bin, PREFIX.idx, ...")  # fmt: skip
    parser.add_argument("--eod-token", metavar="TOKEN",
                        help="ends each document (default: the tokenizer's EOS)")  # fmt: skip
    options = parser.parse_args(arguments)

    def body() -> str:
        summary = prepare(options.input, options.tokenizer, options.output, options.eod_token)
        return (
            f"{options.output}: {summary.documents} documents, {summary.tokens} tokens, "
            f"{summary.loss_tokens} of them targets"
        )

    return command.run(body)


if __name__ == "__main__":
    sys.exit(main())
