"""Each planted mistake gets its name, what is right passes, and nothing stops the suite."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from page import PAGE

from bgkd_megatron.conformance.adapters import CANDIDATES, adapted
from bgkd_megatron.conformance.adapters.one_file import load_file
from bgkd_megatron.conformance.command import main, user_candidate
from bgkd_megatron.conformance.mistakes import MISTAKES
from bgkd_megatron.conformance.report import summary
from bgkd_megatron.conformance.suite import Outcome, run

OURS = [name for name in CANDIDATES if name.startswith("ours:")]


def outcome(
    reference: str,
    kind: str = "forward_kl",
    tp_size: int = 2,
    *,
    reduction: str = "none",
    ignore_index: int | None = None,
    timeout: float = 20.0,
) -> Outcome:
    load = functools.partial(user_candidate, reference, kind, reduction, ignore_index)
    return run(load, [tp_size], timeout=timeout)


def mistakes(found: Outcome) -> dict[str, str]:
    """By problem."""
    (size,) = found.sizes.values()
    assert size.failure is None, size.failure
    return {name: v.mistake for name, v in size.verdicts.items() if v.mistake is not None}


@pytest.mark.parametrize("name", OURS)
def test_ours_pass_at_every_size(name: str) -> None:
    found = run(functools.partial(adapted, name), [1, 2, 4])
    assert list(found.sizes) == [1, 2, 4]
    for size in found.sizes.values():
        assert size.passes, (size.failure, size.verdicts)
        assert size.ranks_agree
        assert {"padded", "uneven"} <= size.verdicts.keys()
    num_sweeps = 1 if adapted(name).name.startswith("hybrid_loss") else 2
    cost = found.sizes[4].cost
    assert cost is not None
    assert cost.forward_collectives == {"_allgather_base_": num_sweeps}
    assert cost.backward_collectives == {}
    assert cost.kept_bytes < 100 * cost.num_tokens


@pytest.mark.parametrize(
    ("reference", "kind", "reduction", "ignore_index"),
    [
        ("page:right_kl", "forward_kl", "none", None),
        ("planted:right_cross_entropy", "cross_entropy", "none", None),
        ("planted:right_mean", "cross_entropy", "mean", -100),
        ("planted:softened", "forward_kl_temperature_2", "none", None),
    ],
)
@pytest.mark.parametrize("tp_size", [1, 4])
def test_what_is_right_passes(
    reference: str, kind: str, reduction: str, ignore_index: int | None, tp_size: int
) -> None:
    found = outcome(reference, kind, tp_size, reduction=reduction, ignore_index=ignore_index)
    assert mistakes(found) == {}


@pytest.mark.parametrize(
    ("reference", "kind", "tp_size", "mistake"),
    [
        ("page:kl_with_plain_all_reduce", "forward_kl", 2, "non-autograd all-reduce"),
        ("page:kl_of_gathered_logits", "forward_kl", 4, "doubled backward"),
        ("page:cross_entropy_without_shift", "cross_entropy", 2, "missing vocabulary shift"),
        ("page:kl_of_top_k", "forward_kl", 1, "renormalised top-k"),
        ("planted:doubled_at_the_end", "forward_kl", 2, "doubled backward"),
        ("planted:doubled_normaliser", "forward_kl", 2, "doubled backward"),
        ("planted:constant_normaliser", "forward_kl", 2, "constant normaliser"),
        ("planted:tempered", "forward_kl", 1, "scaled gradient"),
        ("planted:ignores_upstream", "forward_kl", 1, "ignored upstream gradient"),
        ("planted:max_in_the_graph", "forward_kl", 2, "non-autograd all-reduce"),
        ("planted:cross_term", "forward_kl", 1, "cross term alone"),
        ("planted:partial_sum", "forward_kl", 2, "partial loss"),
        ("planted:shard_alone", "forward_kl", 2, "softmax of the shard"),
        ("planted:per_token_mean", "forward_kl", 1, "other reduction"),
        ("planted:tail_cut_off", "forward_kl", 1, "top-k without the tail"),
        ("planted:slightly_off", "forward_kl", 1, "rounding"),
        ("planted:gradient_in_16_bits", "forward_kl", 1, "rounding"),
        ("page:right_kl", "reverse_kl", 1, "unexplained"),
    ],
)
def test_a_planted_mistake_gets_its_name(
    reference: str, kind: str, tp_size: int, mistake: str
) -> None:
    assert mistakes(outcome(reference, kind, tp_size))["plain"] == mistake


def test_the_value_is_right_where_only_the_gradient_is_wrong() -> None:
    (size,) = outcome("page:kl_of_gathered_logits").sizes.values()
    verdict = size.verdicts["plain"]
    assert verdict.value_error < 1e-5
    assert verdict.gradient_error == pytest.approx(1.0, abs=1e-5)
    assert "2 times" in verdict.detail


@pytest.mark.parametrize(
    ("reference", "problem", "mistake"),
    [
        ("planted:SUMS_PADDING", "padded", "columns of padding"),
        ("planted:SEES_NO_MASK", "masked", "masked tokens"),
        ("planted:no_maximum", "offset", "not finite"),
        ("planted:SUPPOSES_EVEN_SHARDS", "uneven", "unexplained"),
        ("planted:in_16_bits", "bf16", "rounding"),
    ],
)
def test_a_mistake_that_one_problem_shows(reference: str, problem: str, mistake: str) -> None:
    kind = "cross_entropy" if reference == "planted:no_maximum" else "forward_kl"
    assert mistakes(outcome(reference, kind)) == {problem: mistake}


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("planted:raises", "crashes", "IndexError: index 300"),
        ("planted:disconnected", "crashes", "not connected"),
        ("planted:dies_on_rank_1", "crashes", "rank 1 ended with code 42"),
        ("planted:waits_alone", "hangs", "imed out"),
        ("planted:never_ends", "hangs", "nothing done"),
    ],
)
def test_what_stops_is_reported(reference: str, kind: str, message: str) -> None:
    found = outcome(reference, timeout=2.0)
    (size,) = found.sizes.values()
    assert size.failure is not None
    problem, failure = size.failure
    assert (problem, failure.kind) == ("plain", kind)
    assert message in failure.message
    assert not found.passes


@pytest.mark.parametrize(
    ("reference", "reason"),
    [("planted:IS_MISSING", "no-such-package"), ("planted:needs_a_package", "not_there")],
)
def test_what_is_missing_is_not_failed(
    reference: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--candidate", reference, "--kind", "forward_kl", "--tp", "1", "--strict"]) == 0
    output = capsys.readouterr().out
    assert "Not run:" in output
    assert reason in output


@pytest.mark.parametrize(
    ("name", "collectives"),
    [
        ("megatron:cross_entropy", {"allreduce_": 3}),
        ("torch:cross_entropy", {"all_reduce": 3}),
        ("liger:cross_entropy", {"allreduce_": 3}),
    ],
)
def test_losses_of_others(name: str, collectives: dict[str, int]) -> None:
    found = run(functools.partial(adapted, name), [2])
    if found.missing:
        pytest.skip(found.missing)
    assert set(mistakes(found).values()) <= {"rounding"}, found.sizes[2]
    cost = found.sizes[2].cost
    assert cost is not None
    assert cost.forward_collectives == collectives


def test_what_is_only_rounded_is_told_apart() -> None:
    assert summary(outcome("planted:in_16_bits", tp_size=1)).endswith("TP 1 rounds")
    assert summary(outcome("planted:partial_sum", tp_size=2)).endswith("TP 2 **fails**")


def test_ranks_may_agree_on_nan() -> None:
    found = outcome("planted:not_a_number", tp_size=2)
    assert set(mistakes(found).values()) == {"not finite"}
    assert found.sizes[2].ranks_agree


def test_a_variable_is_set_before_anything_is_imported() -> None:
    assert mistakes(outcome("planted:NEEDS_A_VARIABLE", tp_size=1)) == {}


def test_a_file_that_a_package_lacks_counts_as_missing() -> None:
    with pytest.raises(ImportError, match=r"numpy .* has no numpy/not_there\.py"):
        load_file("numpy", "numpy/not_there.py")


def test_a_size_that_is_not_claimed_is_not_asked_for() -> None:
    assert outcome("planted:NEEDS_ONE_RANK", tp_size=2).sizes == {}


def test_the_table_and_the_json_tell_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--candidate", "page:kl_of_gathered_logits", "--kind", "forward_kl", "--tp", "1,2"]
    written = tmp_path / "result.json"
    assert main([*arguments, "--json", str(written)]) == 0
    output = capsys.readouterr().out
    row = next(line for line in output.splitlines() if line.startswith("| page:"))
    assert row.split("|")[3].strip() == "passes, **fails**"
    assert "**doubled backward**" in output
    (loss,) = json.loads(written.read_text())["losses"]
    assert loss["passes"] is False
    sizes = loss["sizes"]
    assert sizes["2"]["problems"]["masked"]["mistake"] == "doubled backward"
    assert sizes["2"]["cost"]["forward_collectives"] == {"allgather_": 2}
    assert sizes["2"]["cost"]["sent_bytes"] > 2 * sizes["2"]["cost"]["num_logits"]
    assert sizes["1"]["from_one_rank"] == 0.0
    assert main([*arguments, "--strict"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "there is no loss 'nobody'"),
        (["--tp", "3"], "--tp must be some of"),
        (["--tp", "two"], "--tp must be some of"),
        (["--timeout", "0"], "--timeout must be"),
        (["ours", "--candidate", "page:right_kl"], "not both"),
        (["--candidate", "page:right_kl"], "say with --kind"),
        (["--candidate", "page:absent", "--kind", "forward_kl"], "MODULE:NAME"),
        (["--candidate", "page", "--kind", "forward_kl"], "MODULE:NAME"),
        (["--candidate", "page:PAGE", "--kind", "forward_kl"], "must be a loss or a Candidate"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_list_names_losses_and_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in (*CANDIDATES, "forward_kl", "padded"))


def test_the_page_has_every_name() -> None:
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M))
    assert {name: table.get(name) for name in MISTAKES} == MISTAKES


def test_bytes_are_counted_by_hand() -> None:
    from bgkd_megatron.conformance.counters import CostCounter

    given = torch.ones(8, 4)
    with CostCounter() as counter:
        kept = given * 2  # reads 128 bytes, writes 128
        (given + 1).sum()  # 128 + 128, 128 + 4; gone afterwards
        kept.view(-1)[:3]  # nothing
    assert counter.moved_bytes == 644
    assert counter.kept_bytes() == 128
    assert counter.kept_bytes(kept) == 0
    assert counter.collectives == {}
