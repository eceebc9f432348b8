"""The main job, end to end: distil a real language model on this machine and see it improve.

    python examples/demo.py              # or: make demo

SmolLM2-135M-Instruct teaches itself without six of its 30 layers, on two domains of text, with
entropy-weighted hybrid supervision on three tensor-parallel ranks of Megatron-Core.  Without a
network a small teacher is trained first (--fallback asks for that).  Every stage that is finished
is skipped, so an interrupted demo continues where it was.

Exit status: 0 if the student predicts the held-out documents of every domain better than before.
"""

from __future__ import annotations

import sys

from pipeline.exporting import export_student
from pipeline.options import run_example
from pipeline.results import plot, read_results, table
from pipeline.run import Run, train
from pipeline.setup import Setup
from pipeline.stages import console

# Float32 sums in another order, through 24 layers, at logits of about 30.
LOGIT_TOLERANCE = 1e-2


def demo(setup: Setup, steps: int) -> int:
    """Distil, report, export; returns the exit status."""
    run = Run(setup.root / f"hybrid-{steps}-steps", steps)
    train(f"distillation, {steps} steps", setup, run)
    results = read_results(run)
    picture = run.directory / "loss.png"
    plot(run, picture)
    exported = run.directory / "student-hf"
    difference = export_student(setup, run, exported)

    console.print(table({"hybrid": results}))
    for what, path in (
        ("checkpoint", run.checkpoint),
        ("logs", run.metrics.parent),
        ("loss curve", picture),
        ("student for transformers", exported),
    ):
        console.print(f"{what + ':':<26}{path}", markup=False)
    console.print(f"Its logits there differ from Megatron's by {difference:.1e} at most.")
    if difference > LOGIT_TOLERANCE:
        console.print(f"[red]The export is wrong: that is more than {LOGIT_TOLERANCE}.[/]")
        return 1
    if not all(result.improved for result in results.values()):
        console.print("[red]The student did not improve on every domain.[/]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_example(__doc__, demo))
