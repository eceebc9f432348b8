"""What a distillation run starts from: teacher, student, and tokenized text of some domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.stages import stage
from pipeline.texts import PARTS, Documents, write_parts

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Setup:
    """Teacher, student and data of a distillation run, all on disk.

    root: folder of everything.  config: YAML file of the run.  steps: its usual length.
    """

    root: Path
    teacher: Path
    student: Path
    domains: tuple[str, ...]
    config: Path
    steps: int

    def dataset(self, domain: str, part: str) -> Path:
        """Prefix of an indexed dataset; part: "train" or "heldout"."""
        return dataset(self.root, domain, part)


def dataset(root: Path, domain: str, part: str) -> Path:
    """Prefix of an indexed dataset below `root`."""
    return root / "data" / f"{domain}.{part}"


def text_file(root: Path, domain: str, part: str) -> Path:
    """The documents of one part of a domain below `root`, as JSON lines."""
    return root / "text" / f"{domain}.{part}.jsonl"


def make_texts(root: Path, domains: Mapping[str, Callable[[], Documents]]) -> None:
    """Write the documents of each domain to ROOT/text."""
    for domain, documents in domains.items():
        stage(
            f"documents of the domain {domain}",
            text_file(root, domain, "heldout"),
            partial(write_parts, documents, partial(text_file, root, domain)),
            log=root / "setup.log",
        )


def make_datasets(root: Path, domains: tuple[str, ...], tokenizer: Path, eod_token: str) -> None:
    """Tokenize ROOT/text into ROOT/data."""
    from bgkd_megatron.data.prepare import prepare

    for domain in domains:
        for part in PARTS:
            text, prefix = text_file(root, domain, part), dataset(root, domain, part)
            stage(
                f"tokens of {domain}, {part}",
                prefix.with_name(prefix.name + ".idx"),
                partial(prepare, [text], tokenizer, prefix, eod_token),
                log=root / "setup.log",
            )
