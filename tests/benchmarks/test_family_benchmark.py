"""The comparison of the family as a user runs it, at a size where no time means anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from loss_bench import family_report
from loss_bench.family import FAMILY, ours_and_eager
from loss_bench.problem import Setting, exact_loss, gradient_error, make_problem
from loss_bench.results import Row
from loss_bench.variants import VARIANTS

from bgkd_megatron.fdivergence import FKind
from bgkd_megatron.objectives.config import ObjectiveConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "family.py"
MEMBERS = ["forward_kl", "jensen_shannon", "hybrid_wsl"]


def run(*options):
    command = [sys.executable, SCRIPT, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    done = run(
        "--tokens", 3, "--vocab", 301, "--repetitions", 1, "--threads", 1,
        "--members", ",".join(MEMBERS),
        "--json", folder / "out.json", "--markdown", folder / "out.md",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text()), (folder / "out.md").read_text()


def test_members_are_measured_on_both_sides(output):
    results = output[0]["results"]
    assert [result["dtype"] for result in results] == ["fp32", "bf16"]
    for result in results:
        assert [row["member"] for row in result["rows"]] == MEMBERS
        for row in result["rows"]:
            assert row["forward_kl_ms"] > 0
            for side in (row["ours"], row["eager"]):
                assert side["status"] == "ok", side["reason"]
                assert side["total_ms"] > 0
                assert side["extra_bytes"] >= 0


def test_markdown_has_the_machine_and_all_rows(output):
    document, markdown = output
    assert document["machine"]["cpu"] in markdown
    for member in MEMBERS:
        assert markdown.count(f"| {FAMILY[member].title} |") == len(document["results"])
    for aim in ("reads = 1: 10 times", "reads = 2: 6 times", "at most 1.1 times", "extra memory"):
        assert (
            sum(line.startswith("* aim: ") and aim in line for line in markdown.splitlines()) == 1
        )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("member", FAMILY)
def test_both_sides_compute_the_same(member, dtype):
    """20 tokens: a document, and the beginning of the next."""
    setting = Setting(vocab_size=301, num_tokens=20, dtype=dtype)
    exact = exact_loss(setting, member)
    for name in ours_and_eager(member):
        problem, loss = make_problem(setting, member), VARIANTS[name].make(setting)
        value = problem.forward(loss)
        value.backward()
        # Eager PyTorch divides small differences of float32.
        assert value.item() == pytest.approx(exact, rel=2e-5)
        assert gradient_error(problem, setting.num_tokens) < {"fp32": 2e-5, "bf16": 4e-3}[dtype]


def test_the_family_is_whole():
    """Every soft term, weighting and hard term of the configuration that needs no schedule."""
    configs = [member.config for member in FAMILY.values()]

    def choices(name):
        return set(ObjectiveConfig.model_fields[name].annotation.__args__)

    assert {config.soft for config in configs} == choices("soft")
    assert {config.weighting for config in configs} == choices("weighting") - {"curriculum"}
    for name in ("hard", "confidence", "entropy"):
        assert {getattr(config, name) for config in configs} == choices(name)
    assert {c.fdivergence.kind for c in configs if c.fdivergence} == set(FKind)
    exponents = {(c.alpha, c.beta) for c in configs if c.soft == "alpha_beta"}
    assert {(a == 0, b == 0, a + b == 0) for a, b in exponents} == {
        (False, False, False), (True, False, False), (False, True, False),
        (False, False, True), (True, True, True),
    }  # fmt: skip


def test_aims_name_what_misses_them():
    def row(member, ours_ms, eager_ms, extra):
        ours = Row("ours", "ours", member, "ok", total_ms=ours_ms, extra_fraction=extra)
        eager = Row("eager", "eager", member, "ok", times_ours=eager_ms / ours_ms)
        described = FAMILY[member]
        return family_report.FamilyRow(
            member, described.title, described.reads, ours, eager, 10.0, 0.0
        )

    rows = [
        row("forward_kl", 10.0, 100.0, 0.001),
        row("jensen_shannon", 10.0, 59.0, 0.02),
        row("hybrid_wsl", 11.5, 120.0, 0.001),
    ]
    result = family_report.FamilyResult(1000, 7, "fp32", rows)
    where = ", V = 1,000 fp32: "
    one, two, hybrid, memory = family_report.aims("cpu", [result])
    assert one.endswith("2 of 2 reach it")
    assert two.endswith(f"0 of 1 reach it. Missed by Jensen-Shannon{where}5.9")
    assert hybrid.endswith(f"0 of 1 reach it. Missed by hybrid, wsl{where}1.15")
    assert memory.endswith(f"2 of 3 reach it. Missed by Jensen-Shannon{where}2.00%")
    assert not list(family_report.aims("cuda", [result]))


def test_refuses_a_member_it_does_not_know():
    done = run("--members", "forward_kl,hellinger")
    assert done.returncode == 2
    assert "'hellinger' is none of forward_kl, " in done.stderr
