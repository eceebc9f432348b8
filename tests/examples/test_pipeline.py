"""The parts of the examples that need no training."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from pipeline.fetch import FetchError, fetch_wheel
from pipeline.results import HeldOut, plot, read_results, table
from pipeline.run import Run
from pipeline.setup import CONFIGS
from pipeline.stages import console, stage
from pipeline.texts import (
    CWE_CATALOG,
    cwe_documents,
    manual_documents,
    python_documents,
    write_parts,
)

from bgkd_megatron.megatron.config_file import load_config


def test_documents_are_held_out_as_a_whole_and_always_the_same(tmp_path: Path) -> None:
    names = [f"document {i}" for i in range(500)]

    def parts(chosen: list[str]) -> tuple[set[str], set[str]]:
        write_parts(lambda: ((n, n) for n in chosen), lambda part: tmp_path / f"{part}.jsonl")
        train, heldout = (
            {json.loads(line)["text"] for line in (tmp_path / f"{p}.jsonl").open()}
            for p in ("train", "heldout")
        )
        return train, heldout

    train, heldout = parts(names)
    assert train | heldout == set(names)
    assert not train & heldout
    assert 25 < len(heldout) < 75
    _, heldout_of_half = parts(names[::2])
    assert heldout_of_half == heldout & set(names[::2])


def test_the_texts_of_this_python() -> None:
    assert sum(len(text) for _, text in python_documents()) > 1_000_000
    assert sum(len(text) for _, text in manual_documents()) > 100_000


def test_a_stage_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, calls = tmp_path / "out", []

    def make() -> None:
        calls.append(1)
        print("noise")
        output.touch()

    stage("work", output, make, log=tmp_path / "log")
    stage("work", output, make, log=tmp_path / "log")
    assert len(calls) == 1
    assert (tmp_path / "log").read_text() == "noise\n"
    with pytest.raises(RuntimeError, match="ended without writing"):
        stage("nothing", tmp_path / "never", lambda: None)


def test_a_package_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match=r"cannot download nothing==1\.0: ERROR"):
        fetch_wheel("nothing-1.0-py3-none-any.whl", tmp_path)


def test_half_a_download_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while pip copies the file to where it was told to."""

    def interrupted(command: list[str], **options: object) -> None:
        (destination,) = (word[7:] for word in command if word.startswith("--dest="))
        Path(destination, "p-1.0-py3-none-any.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel("p-1.0-py3-none-any.whl", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["not an archive", "without the texts", "cut-off texts"])
def test_damaged_texts_are_named(tmp_path: Path, damage: str) -> None:
    wheel = tmp_path / "cwe.whl"
    wheel.write_bytes(b"half a download")
    if damage != "not an archive":
        with zipfile.ZipFile(wheel, "w") as archive:
            name = "other" if damage == "without the texts" else CWE_CATALOG
            archive.writestr(name, "<Weakness_Catalog>")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(wheel))} cannot be read \(.*\): "):
        next(cwe_documents(wheel))


def _write_metrics(run: Run) -> None:
    records = [
        {"kind": "train", "step": step, "loss": 3.0, "hard_loss": 4.0, "soft_loss": 1.0}
        for step in (1, 2)
    ]
    for step, nll, kl in ((0, 4.5, 0.9), (2, 3.5, 0.5)):
        record = {"kind": "valid", "step": step, "set": "cwe", "teacher_nll": 3.0}
        records.append({**record, "nll": nll, "forward_kl": kl})
    run.metrics.parent.mkdir(parents=True)
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_results_are_read_and_shown(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 2)
    _write_metrics(run)
    results = read_results(run)
    assert results == {"cwe": HeldOut(3.0, 4.5, 3.5, 0.9, 0.5)}
    assert results["cwe"].improved
    assert not HeldOut(3.0, 4.5, 4.5, 0.9, 0.5).improved

    with console.capture() as capture:
        console.print(table({"hybrid": results}))
    shown = capture.get()
    assert all(number in shown for number in ("3.000", "4.500", "3.500", "0.900", "0.500"))
    plot(run, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_are_valid(file: Path) -> None:
    assert load_config(file).parallel.tensor_parallel == 3
