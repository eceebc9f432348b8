"""What came of it, as Markdown for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bgkd_megatron.conformance.measure import Cost
from bgkd_megatron.conformance.mistakes import MISTAKES
from bgkd_megatron.conformance.problems import COST_PROBLEM
from bgkd_megatron.conformance.suite import Outcome, SizeOutcome, version_of

__all__ = ["as_json", "as_markdown", "summary"]

_COLUMNS = (
    "error in fp32, value / gradient",
    "in bf16",
    "from TP 1",
    "collectives, fwd + bwd",
    "sent, B per token",
    "moved, B per logit",
    "kept, B per logit",
)


def summary(outcome: Outcome) -> str:
    """One line."""
    if outcome.missing:
        return f"not run: {outcome.missing}"
    results = (f"TP {tp} {_result(size)}" for tp, size in outcome.sizes.items())
    return ", ".join(results) or "not run: it is not made for these sizes"


def as_markdown(outcomes: Sequence[Outcome], tp_sizes: Sequence[int], command: str) -> str:
    """The table, and what stands below it: failures, what is missing, machine and command."""
    head = ["loss", "claims", f"TP {', '.join(map(str, tp_sizes))}", *_COLUMNS]
    ran = [outcome for outcome in outcomes if outcome.sizes and not outcome.missing]
    lines = [_row(head), _row(["---"] * len(head))]
    lines += [_row(_cells(outcome, tp_sizes)) for outcome in ran]
    lines += [
        "",
        "Errors: the worst of all sizes and problems. Costs: one rank of the largest size, with "
        "bfloat16 logits.",
    ]
    for title, items in (
        ("What is wrong", _complaints(ran)),
        ("Notes", _notes(ran)),
        ("Not run", [f"{o.title}: {o.missing}" for o in outcomes if o.missing]),
    ):
        if items:
            lines += ["", f"{title}:", "", *(f"* {item}" for item in items)]
    facts = machine_facts(outcomes)
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines += ["", f"{facts['machine']}; {versions}; {facts['date'][:10]}: `{command}`.", ""]
    return "\n".join(lines)


def as_json(outcomes: Sequence[Outcome], command: str) -> dict[str, Any]:
    """Plain values; errors that are no number are strings."""
    return {
        "command": command,
        **machine_facts(outcomes),
        "mistakes": MISTAKES,
        "losses": [_outcome_json(outcome) for outcome in outcomes],
    }


def machine_facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """When, where and with which versions the outcomes were measured."""
    packages = {"torch": version_of("torch")}
    packages |= {o.candidate.package or "": o.version for o in outcomes if o.version}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, Python "
        f"{platform.python_version()}",
        "packages": packages,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(outcome: Outcome, tp_sizes: Sequence[int]) -> list[str]:
    sizes = list(outcome.sizes.values())
    differences = [size.from_one_rank for tp, size in outcome.sizes.items() if tp > 1]
    return [
        outcome.title,
        outcome.candidate.claim.name,
        _results(outcome, tp_sizes),
        _errors(sizes, bf16=False),
        _errors(sizes, bf16=True),
        _number(max((d for d in differences if d is not None), default=None)),
        *_cost_cells(outcome.sizes),
    ]


def _results(outcome: Outcome, tp_sizes: Sequence[int]) -> str:
    """One word where it is the same for all sizes."""
    each = [_result(outcome.sizes[tp]) if tp in outcome.sizes else "-" for tp in tp_sizes]
    return each[0] if len(set(each)) == 1 else ", ".join(each)


def _result(size: SizeOutcome) -> str:
    if size.failure is not None:
        return f"**{size.failure[1].kind}**"
    mistakes = {verdict.mistake for verdict in size.verdicts.values()} - {None}
    if mistakes == {"rounding"}:
        return "rounds"
    return "**fails**" if mistakes else "passes"


def _errors(sizes: Sequence[SizeOutcome], *, bf16: bool) -> str:
    verdicts = [
        verdict
        for size in sizes
        for problem, verdict in size.verdicts.items()
        if (problem == COST_PROBLEM) == bf16
    ]
    if not verdicts:
        return "-"
    worst = (
        max((v.value_error for v in verdicts), key=_nan_first),
        max((v.gradient_error for v in verdicts), key=_nan_first),
    )
    return " / ".join(map(_number, worst))


def _nan_first(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.1 else f"{value:.2g}"


def _cost_cells(sizes: dict[int, SizeOutcome]) -> list[str]:
    costs = {tp: size.cost for tp, size in sizes.items() if size.cost is not None}
    if not costs:
        return ["-"] * 4
    tp_size = max(costs)
    cost = costs[tp_size]
    calls = [sum(c.values()) for c in (cost.forward_collectives, cost.backward_collectives)]
    return [
        "-" if tp_size == 1 else f"{calls[0]} + {calls[1]}",
        "-" if tp_size == 1 else f"{cost.sent_bytes / cost.num_tokens:.0f}",
        f"{cost.moved_bytes / cost.num_logits:.1f}",
        _kept(cost),
    ]


def _kept(cost: Cost) -> str:
    return f"{cost.kept_bytes / cost.num_logits:.2f}"


def _complaints(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{outcome.title}: {text}" for outcome in outcomes for text in _complaints_of(outcome)]


def _complaints_of(outcome: Outcome) -> Iterator[str]:
    where: dict[str, list[str]] = {}
    for tp_size, size in outcome.sizes.items():
        found = {name: v for name, v in size.verdicts.items() if v.mistake is not None}
        for mistake in dict.fromkeys(v.mistake for v in found.values()):
            problems = [name for name, verdict in found.items() if verdict.mistake == mistake]
            detail = found[problems[0]].detail
            about = f"TP {tp_size} ({', '.join(problems)}{'; ' if detail else ''}{detail})"
            where.setdefault(mistake or "", []).append(about)
    for mistake, places in where.items():
        yield f"**{mistake}**: {MISTAKES[mistake]}; {', '.join(places)}"
    for tp_size, size in outcome.sizes.items():
        if size.failure is not None:
            problem, failure = size.failure
            yield f"**{failure.kind}** at TP {tp_size}, problem {problem}: {failure.message}"


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{o.title}: {note}" for o in outcomes if (note := "; ".join(_facts(o)))]


def _facts(outcome: Outcome) -> Iterator[str]:
    if outcome.candidate.note:
        yield outcome.candidate.note
    overwritten = {name for size in outcome.sizes.values() for name in size.overwrites}
    for name in sorted(overwritten):
        yield f"overwrites the {name}'s logits in forward"
    if not all(size.ranks_agree for size in outcome.sizes.values()):
        yield "its losses are not bitwise equal on all ranks"


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    candidate = outcome.candidate
    return {
        "name": candidate.name,
        "package": candidate.package,
        "version": outcome.version,
        "claim": {"name": candidate.claim.name, "formula": candidate.claim.formula},
        "reduction": candidate.reduction,
        "ignore_index": candidate.ignore_index,
        "knows_padding": candidate.knows_padding,
        "takes_uneven_shards": candidate.takes_uneven_shards,
        "note": candidate.note,
        "missing": outcome.missing,
        "passes": None if outcome.missing else outcome.passes,
        "sizes": {str(tp): _size_json(size) for tp, size in outcome.sizes.items()},
    }


def _size_json(size: SizeOutcome) -> dict[str, Any]:
    failure = None
    if size.failure is not None:
        problem, cause = size.failure
        failure = {"problem": problem, "kind": cause.kind, "message": cause.message}
    return {
        "passes": size.passes,
        "failure": failure,
        "ranks_agree": size.ranks_agree,
        "from_one_rank": _plain(size.from_one_rank),
        "overwrites": list(size.overwrites),
        "cost": None if size.cost is None else dataclasses.asdict(size.cost),
        "problems": {
            name: {key: _plain(value) for key, value in dataclasses.asdict(verdict).items()}
            for name, verdict in size.verdicts.items()
        },
    }


def _plain(value: Any) -> Any:
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else str(value)
