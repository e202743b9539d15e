"""A file's content is read once, and again when it may have changed."""

import os
from pathlib import Path

import pytest

from lavis_peft.features import digests as module
from lavis_peft.features.digests import FileDigests


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    real = module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: found.append(path) or real(path))
    return found


def written(path: Path, content: bytes, age: int = 100) -> Path:
    path.write_bytes(content)
    moment = path.stat().st_mtime_ns - age * 10**9
    os.utime(path, ns=(moment, moment))
    return path


def test_a_file_is_read_once_for_all_processes(tmp_path: Path, readings: list[Path]) -> None:
    paths = [str(written(tmp_path / name, name.encode())) for name in "abc"]
    folder = tmp_path / "files"
    first = FileDigests(folder).of_all(paths)
    assert len(set(first.values())) == 3
    assert FileDigests(folder).of_all(paths) == first
    assert len(readings) == 3


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", b"same"), written(tmp_path / "two", b"same")
    known = FileDigests(tmp_path / "files")
    assert known.of(one) == known.of(two)
    before = known.of(one)
    written(one, b"also", age=50)
    assert known.of(one) != before


def test_a_file_that_was_just_written_is_read_each_time(tmp_path: Path, readings: list[Path]) -> None:
    path = written(tmp_path / "new", b"new", age=0)
    for _ in range(2):
        FileDigests(tmp_path / "files").of_all([str(path)])
    assert len(readings) == 2


def test_half_lines_and_nonsense_are_passed_over(tmp_path: Path, readings: list[Path]) -> None:
    path, folder = written(tmp_path / "a", b"a"), tmp_path / "files"
    FileDigests(folder).of_all([str(path)])
    (remembered,) = folder.iterdir()
    remembered.write_bytes(b'[1, 2]\n\xff\n["x", "y", 3, "00"]\n' + remembered.read_bytes() + b'["half", 1')
    assert FileDigests(folder).known(path) is not None
    assert len(readings) == 1


def test_what_cant_be_read_is_left_out(tmp_path: Path) -> None:
    path = str(written(tmp_path / "a", b"a"))
    assert list(FileDigests(tmp_path / "files").of_all([str(tmp_path / "gone"), path])) == [path]


def test_a_folder_that_cant_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    path = str(written(tmp_path / "a", b"a"))
    assert list(FileDigests(tmp_path / "file" / "below").of_all([path])) == [path]
    assert "digests of 1 files aren't remembered" in caplog.text
