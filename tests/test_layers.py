"""CONTRIBUTING.md's table of layers, held against the imports of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "bgkd_megatron").rglob("*.py")
    if path.name != "__init__.py" or path.parent.name != "bgkd_megatron"
)


def layers() -> dict[str, int]:
    """The row of every path in the table."""
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    return {path: row for row, cell in enumerate(rows) for path in re.findall(r"`([^`]+)`", cell)}


def layer_of(module: Path) -> int | None:
    """Of a file, or of the nearest folder above it that the table names."""
    table = layers()
    return next((table[str(p)] for p in (module, *module.parents) if str(p) in table), None)


def imported(module: Path) -> set[Path]:
    """The package's own modules that `module` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bgkd_megatron"):
            base = Path(*(node.module or "").split("."))
            names = [base / alias.name for alias in node.names]
            found |= {path.with_suffix(".py") for path in (base, *names)} | {base / "__init__.py"}
    return {path for path in found if path in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_up_the_table(module: Path) -> None:
    own = layer_of(module)
    assert own is not None, f"{module} is in no row of the table"
    for other in imported(module):
        layer = layer_of(other)
        assert layer is not None
        assert layer <= own, f"{module} imports {other}, which stands below it"


def test_the_table_names_only_what_is_there() -> None:
    assert len(layers()) > 10
    for path in layers():
        assert (ROOT / path).exists(), path
