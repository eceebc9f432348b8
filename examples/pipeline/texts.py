"""Texts of several domains as documents, and their split into training and held-out ones."""

from __future__ import annotations

import json
import os
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

PARTS = ("train", "heldout")
HELD_OUT_SHARE = 10  # one document in so many
CWE_CATALOG = "cwe2/database_v49/cwec_v4.14.xml"  # in the wheel of cwe2

Documents = Iterator[tuple[str, str]]  # name, text


def cwe_documents(wheel: Path) -> Documents:
    """Descriptions of software weaknesses, from the wheel of the package cwe2.

    Source: Common Weakness Enumeration 4.14, MITRE; its terms of use are in the wheel.
    Raises OSError, or ValueError for a damaged wheel.
    """
    sections = (
        "Description",
        "Extended_Description",
        "Background_Details",
        "Common_Consequences",
        "Potential_Mitigations",
        "Demonstrative_Examples",
    )
    try:
        with zipfile.ZipFile(wheel) as archive:
            catalog = ElementTree.fromstring(archive.read(CWE_CATALOG))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ElementTree.ParseError) as error:
        raise ValueError(f"{wheel} cannot be read ({error}): remove it and get it again") from error
    namespace = {"cwe": catalog.tag.partition("}")[0].strip("{")}
    for weakness in catalog.iterfind("cwe:Weaknesses/cwe:Weakness", namespace):
        name = f"CWE-{weakness.get('ID')}: {weakness.get('Name')}"
        found = (weakness.find(f"cwe:{section}", namespace) for section in sections)
        prose = (" ".join(" ".join(x.itertext()).split()) for x in found if x is not None)
        yield name, "\n\n".join([name, *prose]) + "\n"


def python_documents() -> Documents:
    """The top-level modules of the Python standard library, as source code."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield file.stem, text


def manual_documents() -> Documents:
    """The chapters of Python's language reference that come with the interpreter."""
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def write_parts(documents: Callable[[], Documents], file: Callable[[str], Path]) -> None:
    """Write the training documents to file("train") and, last, the others to file("heldout").

    Whole documents are held out, never parts of them.  Which ones depends on their names alone, so
    the split is the same whatever else is in the domain.
    """
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name, text in documents():
        held_out = zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0
        parts["heldout" if held_out else "train"].append(json.dumps({"text": text}) + "\n")
    for part in PARTS:
        if not parts[part]:
            raise ValueError(f"there are no documents for {file(part)}")
        file(part).parent.mkdir(parents=True, exist_ok=True)
        partial = file(part).with_suffix(".partial")
        partial.write_text("".join(parts[part]))
        os.replace(partial, file(part))
