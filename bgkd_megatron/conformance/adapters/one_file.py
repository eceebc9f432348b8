"""One file of a package whose import would need much that the file does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["load_file"]


def load_file(package: str, path: str) -> ModuleType:
    """The module at `path` of an installed distribution, without the packages above it.

    Raises ImportError when this version has no such file, or what the file itself imports is
    missing.
    """
    found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    spec = importlib.util.spec_from_file_location(found.stem, found)
    if spec is None or spec.loader is None or not found.exists():
        version = importlib.metadata.version(package)
        raise ImportError(f"{package} {version} has no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
