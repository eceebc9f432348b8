"""python -m sass LIMITS.toml CUBIN...   (in tests/gpu): prints figures; exit code 1 on a breach."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import check, describe, read_limits


def main() -> int:
    parser = argparse.ArgumentParser(prog="sass", description=__doc__)
    parser.add_argument("limits", type=Path)
    parser.add_argument("cubins", type=Path, nargs="+")
    arguments = parser.parse_args()
    report = check(arguments.cubins, read_limits(arguments.limits))
    for figures in report.figures:
        print(describe(figures))
    for breach in report.breaches:
        print("BREACH", breach)
    return 1 if report.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
