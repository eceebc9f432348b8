"""The comparison as a user runs it, at a size where only its completeness can be judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loss.py"
# Without the compiled ones: they take half a minute.
VARIANTS = (
    "ours_hybrid", "ours_hybrid_once", "eager_hybrid", "ours_kl", "eager_kl", "lean_kl",
    "modelopt", "liger_logits", "ours_ce", "eager_ce", "liger_ce", "te_ce", "ours_head",
    "head_alone", "liger",
)  # fmt: skip
OTHER_PACKAGES = {"modelopt", "liger_logits", "liger_ce", "te_ce", "liger"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    command = [
        sys.executable, SCRIPT, "--tokens", "9", "--vocab", "1000,2001", "--repetitions", "1",
        "--threads", "1", "--variants", ",".join(VARIANTS),
        "--json", folder / "out.json", "--markdown", folder / "out.md",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "out.json").read_text()), (folder / "out.md").read_text()


def test_every_variant_has_a_row_at_every_setting(output):
    results = output[0]["results"]
    settings = [(result["vocab_size"], result["dtype"]) for result in results]
    assert settings == [(1000, "fp32"), (1000, "bf16"), (2001, "fp32"), (2001, "bf16")]
    for result in results:
        assert [row["variant"] for row in result["rows"]] == list(VARIANTS)
        assert result["copy_gb_per_s"] > 0


def test_rows_are_measured_and_right_or_say_why_not(output):
    for result in output[0]["results"]:
        for row in result["rows"]:
            if row["status"] == "skipped":
                assert row["variant"] in OTHER_PACKAGES
                assert row["reason"]
                continue
            assert row["total_ms"] > 0
            assert row["times_ours"] > 0
            assert row["extra_bytes"] >= 0
            assert row["bytes_per_pair"] > 0
            assert row["gb_per_s"] > 0
            if row["variant"] not in OTHER_PACKAGES:
                assert row["status"] == "ok", row["reason"]


def test_bytes_of_ours_are_two_reads_and_one_write_of_the_gradient(output):
    for result, element_size in zip(output[0]["results"], (4, 2, 4, 2), strict=True):
        rows = {row["variant"]: row for row in result["rows"]}
        logits = 5 * element_size  # forward reads two, backward reads two and writes one
        assert logits < rows["ours_kl"]["bytes_per_pair"] < 1.2 * logits
        assert rows["lean_kl"]["bytes_per_pair"] > 2 * logits


def test_markdown_has_the_machine_and_all_rows(output):
    document, markdown = output
    assert document["machine"]["cpu"] in markdown
    for row in document["results"][0]["rows"]:
        assert markdown.count(f"| {row['title']} ") == len(document["results"])


def test_a_missing_package_is_a_row_with_the_reason(tmp_path):
    (tmp_path / "liger_kernel.py").write_text("raise ImportError('liger_kernel is not here')\n")
    command = [
        sys.executable, SCRIPT, "--tokens", "2", "--vocab", "100", "--dtype", "fp32",
        "--repetitions", "1", "--variants", "lean_kl,liger_logits", "--json", tmp_path / "out.json",
    ]  # fmt: skip
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["results"][0]["rows"]
    assert [row["status"] for row in rows] == ["ok", "skipped"]
    assert rows[1]["reason"] == "ImportError: liger_kernel is not here"


def test_refuses_a_variant_it_does_not_know():
    command = [sys.executable, SCRIPT, "--variants", "ours_kl,apex"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "'apex' is none of ours_hybrid, " in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_prints_the_roofline(tmp_path):
    command = [
        sys.executable, SCRIPT, "--device", "cuda", "--tokens", "100", "--vocab", "1000,2000",
        "--dtype", "bf16", "--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "sees no GPU): nothing is measured" in run.stdout
    assert "static, not measured" in run.stdout
    assert "nvidia-modelopt" in run.stdout  # its version, or that it is missing
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["measured"] is False
    rates = {gpu["name"]: gpu["gb_per_s"] for gpu in document["gpus"]}
    assert [line["variant"] for line in document["rooflines"]] == 2 * [
        "ours_hybrid", "ours_hybrid_once", "ours_kl", "ours_kl_once", "ours_ce",
    ]  # fmt: skip
    for line in document["rooflines"]:
        moved = line["forward_bytes"] + line["backward_bytes"]
        assert line["ms"] == pytest.approx({n: moved / rate / 1e6 for n, rate in rates.items()})
    markdown = (tmp_path / "out.md").read_text()
    assert markdown.startswith("static, not measured")
    assert markdown.count("| ours, CE |") == 2
