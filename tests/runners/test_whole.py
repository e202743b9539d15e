"""Which checkpoint of a folder a run goes on from."""

import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.adapters.checkpoint import save_atomic
from lavis_peft.errors import CheckpointError
from lavis_peft.runners.whole import newest_run, newest_whole, remove_leftovers


def content(epoch: int, iteration: int = 0) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((50,), float(epoch))},
        "optimizer": {},
        "epoch": epoch,
        "iteration": iteration,
    }


def save(folder: Path, epoch: int, iteration: int = 0, name: str | None = None) -> Path:
    path = folder / (name or (f"checkpoint_{epoch}_{iteration}.pth" if iteration else f"checkpoint_{epoch}.pth"))
    save_atomic(content(epoch, iteration), path)
    return path


def damage(path: Path) -> Path:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    return path


def test_the_newest_by_number(tmp_path: Path) -> None:
    for epoch, iteration in ((9, 0), (10, 0), (11, 5), (11, 40)):
        save(tmp_path, epoch, iteration)
    os.utime(tmp_path / "checkpoint_9.pth")
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.path.name == "checkpoint_11_40.pth"
    assert found.content["model"]["weight"][0] == 11
    assert found.moment == (11, 40)
    save(tmp_path, 11)
    assert newest_whole(tmp_path).path.name == "checkpoint_11.pth"


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    (tmp_path / ".checkpoint_0.pth.here.77.tmp").write_bytes(b"half")
    assert newest_whole(tmp_path) is None


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "another", "code"])
def test_damaged_files_are_named_and_passed_over(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 3)
    last = save(tmp_path, 4)
    if how == "flipped":
        damage(last)
    elif how == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif how == "empty":
        last.write_bytes(b"")
    elif how == "another":
        save_atomic({"model": {}}, last)
    else:
        torch.save({**content(4), "model": object}, last)
    with caplog.at_level(logging.WARNING):
        found = newest_whole(tmp_path)
    assert found.path.name == "checkpoint_3.pth"
    assert [str(last) in record.message for record in caplog.records] == [True]


def test_what_the_file_says_counts_and_not_its_name(tmp_path: Path) -> None:
    save(tmp_path, 2, name="checkpoint_8.pth")
    save(tmp_path, 5)
    save(tmp_path, 4)
    assert newest_whole(tmp_path).path.name == "checkpoint_5.pth"


def test_the_best_is_the_last_resort(tmp_path: Path) -> None:
    save(tmp_path, 2, name="checkpoint_best.pth")
    damage(save(tmp_path, 3))
    assert newest_whole(tmp_path).path.name == "checkpoint_best.pth"
    save(tmp_path, 1)
    assert newest_whole(tmp_path).path.name == "checkpoint_best.pth"
    (tmp_path / "checkpoint_3.pth").unlink()
    (tmp_path / "checkpoint_1.pth").unlink()
    assert newest_whole(tmp_path).path.name == "checkpoint_best.pth"


def test_no_whole_one_is_an_error_that_names_each(tmp_path: Path) -> None:
    paths = [damage(save(tmp_path, 3)), damage(save(tmp_path, 0, name="checkpoint_best.pth"))]
    with pytest.raises(CheckpointError, match="none of the run's checkpoints is whole") as caught:
        newest_whole(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def run(base: Path, name: str, *files: str) -> Path:
    folder = base / name
    (folder / "result").mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    return folder


def test_the_run_that_was_started_last(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "none") is None
    run(tmp_path, "20261122001500", "checkpoint_3.pth")
    run(tmp_path, "20261122001500-2", "checkpoint_0.pth")
    last = run(tmp_path, "20261122001500-10", "checkpoint_best.pth")
    run(tmp_path, "20261122001501")  # killed before it had anything to go on from
    (tmp_path / "note.txt").touch()
    assert newest_run(tmp_path) == last
    finished = run(tmp_path, "20261122001502", "finished.json")
    assert newest_run(str(tmp_path)) == finished


def test_a_run_with_a_name_of_its_own_counts_by_its_time(tmp_path: Path) -> None:
    run(tmp_path, "20001122001500", "checkpoint_3.pth")
    mine = run(tmp_path, "mine", "checkpoint_0.pth")
    odd = run(tmp_path, "99999999999999", "checkpoint_0.pth")
    for path in (*odd.iterdir(), odd):
        os.utime(path, (1e9, 1e9))
    assert newest_run(tmp_path) == mine
    shutil.rmtree(mine)
    assert newest_run(tmp_path) == odd


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = [
        tmp_path / f".checkpoint_3.pth.{host}.{ended.pid}.tmp",
        tmp_path / f".checkpoint_3.pth.{host}.{os.getpid()}.tmp",  # of a process that had our number before us
        tmp_path / ".checkpoint_3.pth.another.host.1.tmp",
        tmp_path / "result" / f".test_best.json.{host}.{ended.pid}.tmp",
    ]
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = tmp_path / f".report.json.{host}.{living.pid}.tmp"
    older = tmp_path / f".checkpoint_2.pth.{host}.{living.pid}.tmp"
    (tmp_path / "result").mkdir()
    for path in (*dead, alive, older, tmp_path / "notes.tmp"):
        path.write_bytes(b"half")
    os.utime(older, (1e9, 1e9))  # the number was another process's then
    try:
        assert set(remove_leftovers(tmp_path)) == {*dead, older}
    finally:
        living.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, "notes.tmp", "result"}
