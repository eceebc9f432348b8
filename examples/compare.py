"""Hard labels, soft labels, or both?  Three runs from the same student and data, side by side.

    python examples/compare.py           # or: make compare

The same models and texts as demo.py, which it shares everything with that is on disk already.
The runs differ in their objective alone:
    hard    cross-entropy with the data
    soft    KL(teacher || student)
    hybrid  both, weighted token by token with the teacher's entropy
One seed and a small held-out set: a first look, no evidence.
"""

from __future__ import annotations

import sys

from pipeline.options import run_example
from pipeline.results import read_results, table
from pipeline.run import Run, train
from pipeline.setup import Setup
from pipeline.stages import console

OBJECTIVES: dict[str, dict[str, object]] = {
    "hard": {"objective.weighting": "static", "objective.soft_weight": 0},
    "soft": {"objective.weighting": "static", "objective.soft_weight": 1},
    "hybrid": {},  # as in the YAML file, and as in demo.py
}


def compare(setup: Setup, steps: int) -> int:
    """Train with each objective and print the results; returns the exit status."""
    results = {}
    for name, settings in OBJECTIVES.items():
        run = Run(setup.root / f"{name}-{steps}-steps", steps)
        train(f"{name}: {steps} steps", setup, run, settings)
        results[name] = read_results(run)
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(run_example(__doc__, compare))
