"""The examples of docs/conformance.md, as a module that the ranks can import."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

exec(compile("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)), PAGE, "exec"))
