"""A file's content is read once, and again when it may have changed."""

import hashlib
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


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written some time ago: nobody can set the time of a file's last change back."""
    monkeypatch.setattr(module, "_FRESH", -(10**12))


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


def test_a_file_in_the_place_of_another_is_read_whatever_time_it_claims(tmp_path: Path) -> None:
    path, folder = written(tmp_path / "picture.bmp", b"one"), tmp_path / "files"
    before, first = path.stat(), FileDigests(folder).of_all([str(path)])[str(path)]
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))  # as unzip, cp -p and rsync -t do
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert FileDigests(folder).known(path) is None
    assert FileDigests(folder).of(path) == hashlib.sha256(b"two").digest() != first


def test_machines_with_files_of_their_own_dont_displace_each_other(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder, real = written(tmp_path / "a", b"a"), tmp_path / "files", module._state
    for shift in (0, 1, 0, 1):  # the same path, another inode with another time
        monkeypatch.setattr(module, "_state", lambda path, shift=shift: (*real(path)[:2], real(path)[2] - shift))
        FileDigests(folder).of_all([str(path)])
    assert len(readings) == 2


def test_a_memory_that_cant_be_read_costs_a_warning(
    tmp_path: Path, readings: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path, folder = written(tmp_path / "a", b"a"), tmp_path / "files"
    (folder / "anothers.jsonl").mkdir(parents=True)  # reading it is refused to root as well
    assert FileDigests(folder).of(path) == hashlib.sha256(b"a").digest()
    assert "anothers.jsonl: can't be read" in caplog.text


@pytest.mark.parametrize("claimed", [0, 100])
def test_a_file_that_was_just_written_is_read_each_time(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "_sha256", lambda path, real=module._sha256: readings.append(path) or real(path))
    path = written(tmp_path / "new", b"new", age=claimed)
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
