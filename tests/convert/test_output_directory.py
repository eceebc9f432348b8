"""An output is complete or not there, and errors speak of it by the name that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bgkd_megatron.convert.output_directory import output_directory
from bgkd_megatron.megatron.errors import RankError


def fail(error: Exception) -> None:
    raise error


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x"
    with output_directory(target) as directory:
        (directory / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda it: (it / "no" / "file").touch(), "[Errno 2] No such file or directory: '{}/no/f"),
        (lambda it: (it / "a").rename(it / "b"), "No such file or directory: '{}/a' -> '{}/b'"),
        (lambda it: fail(OSError(f"{it} cannot be written: full")), "{} cannot be written: full"),
        (lambda it: fail(RankError(f"{it} cannot be written")), "{} cannot be written"),
        (lambda it: fail(ValueError("of something else")), "of something else"),
        (lambda it: fail(FileNotFoundError(2, "None", "/input")), "[Errno 2] None: '/input'"),
    ],
)
def test_errors_name_the_output(
    action: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    target = tmp_path / "x"
    with pytest.raises((OSError, RankError, ValueError)) as error, output_directory(target) as it:
        action(it)
    assert message.replace("{}", str(target)) in str(error.value)
    assert "partial" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Links that lead nowhere, too."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with (
            pytest.raises(FileExistsError, match=f"{name} already exists: remove it or choose"),
            output_directory(tmp_path / name),
        ):
            pytest.fail("the block runs")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "link"}


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250)  # with what is added to it while it is not complete
    with pytest.raises(OSError, match="File name too long") as error, output_directory(target):
        pass
    assert str(error.value).endswith(f"'{target}'")
