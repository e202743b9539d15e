"""A run's folder has one owner, and a dead owner is none."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.runners import lock, processes
from lavis_peft.runners.lock import NAME, hold
from lavis_peft.runners.processes import Holder

fcntl = pytest.importorskip("fcntl")

HOLDING = """
import os, sys, time
from pathlib import Path
from lavis_peft.runners.lock import hold
lock = hold(Path(sys.argv[1]))
child = os.fork() if sys.argv[2] == "forking" else None
if child == 0:
    time.sleep(60)  # as a data-loading process that doesn't notice that the run is gone
    os._exit(0)
print(child or "held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen]:
    """Another process that holds the folder; it lets go at a line of input and ends at another."""
    kind = getattr(request, "param", "plain")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path), kind], **pipes)
    process.word = process.stdout.readline().strip()
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_with_the_holders_name(tmp_path: Path, holder: subprocess.Popen) -> None:
    before = (tmp_path / NAME).read_text()
    with pytest.raises(ConfigError) as caught:
        hold(tmp_path)
    assert str(caught.value).startswith(
        f"run.output_dir: {tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 2"
    )
    assert (tmp_path / NAME).read_text() == before
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "released\n"
    assert not (tmp_path / NAME).exists()
    hold(tmp_path).release()


@pytest.mark.parametrize("holder", ["plain", "forking"], indirect=True)
def test_a_killed_holders_lock_is_taken_over(
    tmp_path: Path, holder: subprocess.Popen, caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()
    holder.wait()
    child = int(holder.word) if holder.word != "held" else None
    try:
        if child is not None:
            assert processes.is_running(child)
        with caplog.at_level(logging.WARNING):
            mine = hold(tmp_path)
    finally:
        if child is not None:
            os.kill(child, signal.SIGKILL)
    assert f"process {holder.pid} on " in caplog.text
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_fork_that_ends_does_not_let_go(tmp_path: Path) -> None:
    mine = hold(tmp_path)
    child = os.fork()
    if child == 0:
        mine.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        hold(tmp_path)
    assert (tmp_path / NAME).is_file()
    mine.release()


def test_reading_the_file_does_not_let_go(tmp_path: Path) -> None:
    mine = hold(tmp_path)
    (tmp_path / NAME).read_text()
    with pytest.raises(ConfigError, match="in use"):
        hold(tmp_path)
    mine.release()
    mine.release()


def test_a_lock_that_nobody_has_any_more_is_let_go(tmp_path: Path) -> None:
    mine = hold(tmp_path)
    del mine
    hold(tmp_path).release()


@pytest.mark.parametrize("locks", [True, False])
def test_one_of_many_gets_it(locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    count, taken, refused = 12, [], []
    together = threading.Barrier(count)

    def take() -> None:
        together.wait()
        try:
            taken.append(hold(tmp_path))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, count - 1)
    taken[0].release()


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks."""
    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_file_is_the_lock(tmp_path: Path) -> None:
    mine = hold(tmp_path)
    with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} .*; if it has ended, remove .*{NAME}"):
        hold(tmp_path)
    mine.release()
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path).release()


ANOTHER_START = replace(Holder.this(), ticks=1)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    ("found", "free"),
    [
        (Holder.this(), False),
        (ANOTHER_START, True),  # the number was given again
        (replace(Holder.this(), boot="of yesterday"), True),
        (replace(Holder.this(), host="elsewhere", ticks=1), False),  # nothing is known of it
    ],
    ids=["alive", "dead", "before a restart", "another machine"],
)
def test_without_locks_only_a_dead_holder_gives_way(found: Holder, free: bool, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(found.text())
    if free:
        hold(tmp_path).release()
        return
    with pytest.raises(ConfigError, match=f"in use by process {found.pid} on {found.host}"):
        hold(tmp_path)
    assert (tmp_path / NAME).read_bytes() == found.text()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}', '{"host": "a", "pid": 1, "what": 2}'])
def test_a_file_that_names_no_holder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).write_text(text)
    mine = hold(tmp_path)  # the system says that nobody has it
    assert Holder.read((tmp_path / NAME).read_text()) == replace(Holder.this(), started=mine_started(tmp_path))
    mine.release()
    (tmp_path / NAME).write_text(text)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ConfigError, match=r"by a process that its run\.lock doesn't name"):
        hold(tmp_path)


def mine_started(folder: Path) -> str:
    return json.loads((folder / NAME).read_text())["started"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"nowhere/{NAME}: can't be written: No such file"):
        hold(tmp_path / "nowhere")


def test_only_the_main_process_holds_and_all_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = hold(tmp_path)
    with pytest.raises(ConfigError) as caught:
        hold(tmp_path)
    monkeypatch.setattr(lock.distributed, "is_main", lambda: False)
    monkeypatch.setattr(lock.distributed, "from_main", lambda value: value)
    assert hold(tmp_path) is None
    monkeypatch.setattr(lock.distributed, "from_main", lambda value: caught.value)
    with pytest.raises(ConfigError, match="in use"):
        hold(tmp_path)
    mine.release()


def test_a_process_is_told_from_another_with_its_number() -> None:
    this = os.getpid()
    ticks = processes.start_ticks(this)
    assert ticks is not None
    assert processes.is_running(this, ticks)
    assert not processes.is_running(this, ticks - 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not processes.is_running(child.pid)
    assert asdict(Holder.this())["ticks"] == ticks
