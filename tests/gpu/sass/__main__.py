"""python -m sass LIMITS.toml CUBIN... [--table]   (in tests/gpu): exit code 1 on a breach.

A cubin is what nvcc -cubin -std=c++20 -ftz=true -arch=sm_90a makes of a source in csrc/cuda.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import check, describe, read_limits, table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="sass", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("limits", type=Path)
    parser.add_argument("cubins", type=Path, nargs="+")
    parser.add_argument("--table", action="store_true", help="in Markdown, instead of the details")
    arguments = parser.parse_args()
    limits = read_limits(arguments.limits)
    report = check(arguments.cubins, limits)
    titles = [entry.title for entry in limits]
    figures = sorted(report.figures, key=lambda f: titles.index(f.title))
    print(table(figures) if arguments.table else "\n".join(map(describe, figures)))
    for breach in report.breaches:
        print("BREACH", breach)
    return 1 if report.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
