"""`bgkd-conformance`: losses on vocabulary-parallel logits, checked and compared.

bgkd-conformance                                                all losses of installed packages
bgkd-conformance ours modelopt:forward_kl --tp 1,2              some of them
bgkd-conformance --candidate my.module:my_loss --kind forward_kl    your own
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bgkd_megatron import command
from bgkd_megatron.conformance import report
from bgkd_megatron.conformance.adapters import CANDIDATES, adapted
from bgkd_megatron.conformance.candidate import Candidate, Reduction
from bgkd_megatron.conformance.claims import CLAIMS
from bgkd_megatron.conformance.problems import PROBLEMS
from bgkd_megatron.conformance.suite import Outcome, run, version_of

__all__ = ["main", "user_candidate"]

# Every problem has 512 columns or a multiple of it.
_TP_SIZES = (1, 2, 4, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    failing = False

    def body() -> str:
        nonlocal failing
        if options.list:
            return _listing()
        outcomes = _run_all(_loaders(options), _tp_sizes(options.tp), options.timeout)
        failing = any(not outcome.passes and not outcome.missing for outcome in outcomes)
        line = shlex.join(["bgkd-conformance", *given])
        if options.json:
            options.json.write_text(json.dumps(report.as_json(outcomes, line), indent=1) + "\n")
        text = report.as_markdown(outcomes, _tp_sizes(options.tp), line)
        if options.markdown:
            options.markdown.write_text(text)
        return text

    status = command.run(body)
    return status or int(failing and options.strict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bgkd-conformance",
        description="Checks losses on vocabulary-parallel logits: value, gradient, tensor-parallel "
        "invariance, collectives, bytes. Prints a table; exit status 0 if it could be made.",
    )
    parser.add_argument("names", nargs="*", help="which of --list, or a package's all (ours)")
    parser.add_argument("--list", action="store_true", help="list losses, kinds and problems")
    parser.add_argument(
        "--candidate", metavar="MODULE:NAME", help="your loss, or a Candidate, in place of ours"
    )
    parser.add_argument("--kind", choices=list(CLAIMS), help="what --candidate claims to compute")
    parser.add_argument(
        "--reduction", choices=["none", "mean", "sum"], default="none",
        help="whether --candidate returns a loss per token, or over all that are not masked",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-index", type=int, help="label of masked tokens; without it --candidate sees none"
    )
    parser.add_argument("--tp", default="1,2,4", help="tensor-parallel sizes (1,2,4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument(
        "--timeout", type=float, default=20.0, help="seconds a collective may wait (20)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a loss is wrong")
    return parser


def _listing() -> str:
    lines = ["losses:"]
    for name, candidate in CANDIDATES.items():
        version = version_of(candidate.package) or "not installed"
        lines.append(f"  {name:30} {candidate.claim.name:18} {candidate.package} {version}")
    lines += ["kinds:", *(f"  {claim.name:18} {claim.formula}" for claim in CLAIMS.values())]
    return "\n".join([*lines, f"problems: {', '.join(PROBLEMS)}"])


def _tp_sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not set(sizes) <= set(_TP_SIZES):
        raise ValueError(f"--tp must be some of {_TP_SIZES}, separated by commas, got {text!r}")
    return sizes


def _loaders(options: argparse.Namespace) -> list[Callable[[], Candidate]]:
    if options.timeout <= 0:
        raise ValueError(f"--timeout must be more than 0 seconds, got {options.timeout}")
    if options.candidate is None:
        return [functools.partial(adapted, name) for name in _chosen(options.names)]
    if options.names:
        raise ValueError(f"give either names ({options.names}) or --candidate, not both")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the current folder
    return [
        functools.partial(
            user_candidate,
            options.candidate,
            options.kind,
            options.reduction,
            options.ignore_index,
        )
    ]


def _chosen(names: Sequence[str]) -> list[str]:
    chosen = []
    for name in names:
        found = [known for known in CANDIDATES if name in (known, known.partition(":")[0])]
        if not found:
            raise ValueError(f"there is no loss {name!r}; --list shows those that there are")
        chosen += found
    return chosen or list(CANDIDATES)


def user_candidate(
    reference: str, kind: str | None, reduction: Reduction, ignore_index: int | None
) -> Candidate:
    """The loss or the Candidate that "MODULE:NAME" refers to.  Raises ValueError."""
    module_name, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--candidate must be MODULE:NAME of something that can be imported, got "
            f"{reference!r}: {error}"
        ) from error
    if isinstance(found, Candidate):
        return found
    if not callable(found):
        raise ValueError(f"{reference} must be a loss or a Candidate, got {type(found).__name__}")
    if kind is None:
        raise ValueError(f"say with --kind what {reference} computes: one of {list(CLAIMS)}")
    return Candidate(
        name=reference,
        claim=CLAIMS[kind],
        make=lambda setting: found,
        reduction=reduction,
        ignore_index=ignore_index,
    )


def _run_all(
    loaders: Sequence[Callable[[], Candidate]], tp_sizes: Sequence[int], timeout: float
) -> list[Outcome]:
    outcomes = []
    for load in loaders:
        outcome = run(load, tp_sizes, timeout=timeout)
        print(f"{outcome.title}: {report.summary(outcome)}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes
