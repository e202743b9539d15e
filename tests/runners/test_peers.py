"""One process's end is every process's, with the reason: real processes, without torch."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# What each process runs: it joins the others by files in a folder, does its own part, and reports an error as the
# command line does. `rest()` is a process that waits for another, as in a collective operation.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from lavis_peft.errors import ConfigError, DataError
from lavis_peft.runners import peers

rank, world_size, folder, part = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
rounds = 0

def share(value):
    global rounds
    rounds += 1
    (folder / f".{rounds}-{rank}").write_text(json.dumps(value))
    (folder / f".{rounds}-{rank}").rename(folder / f"{rounds}-{rank}")
    files = [folder / f"{rounds}-{other}" for other in range(world_size)]
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    return [json.loads(file.read_text()) for file in files]

def rest():
    time.sleep(60)

(folder / f"pid{rank}").write_text(str(os.getpid()))
assert peers.join(rank, world_size, rank, ["localhost"], share)
try:
    exec(part)
    peers.leave()
except Exception as error:
    code = getattr(error, "exit_code", 1)
    peers.end_with(error, code, lambda: sys.stderr.write(f"shown: {error}\\n"))
"""


Run = Callable[..., tuple[list[int], str, float]]


@pytest.fixture
def run(nursery: Any, tmp_path: Path) -> Run:
    """Run the parts, one a process; exit codes, all that was written, and seconds."""

    def run_parts(*parts: str) -> tuple[list[int], str, float]:
        began = time.monotonic()
        arguments = [(rank, len(parts), tmp_path, part) for rank, part in enumerate(parts)]
        started = nursery.ranks(PROGRAM, tmp_path, arguments)
        codes = [process.wait(50) for process in started]
        return codes, "".join(process.said() for process in started), time.monotonic() - began

    return run_parts


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_ends_all_with_its_code_and_is_told_once(failing: int, run: Run) -> None:
    parts = ["rest()"] * 3
    parts[failing] = "raise DataError('a.png: broken')"
    codes, said, seconds = run(*parts)
    assert codes == [2, 2, 2]
    assert said.count("a.png: broken") == 1 and len(said.splitlines()) == 1
    assert seconds < 25


def test_an_unforeseen_error_shows_its_traceback_where_it_was_and_a_line_by_the_main_process(run: Run) -> None:
    codes, said, _ = run("rest()", "1 / 0", "rest()")
    assert codes == [1, 1, 1]
    assert sorted(said.splitlines()) == [
        "Error: process 1 of 3: ZeroDivisionError: division by zero",
        "shown: division by zero",
    ]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all(killed: int, run: Run, tmp_path: Path) -> None:
    parts = ["rest()"] * 3
    parts[killed] = KILLED
    codes, said, seconds = run(*parts)
    assert codes[killed] == -signal.SIGKILL and sorted(codes) == [-signal.SIGKILL, 1, 1]
    name = f"the main process (pid {pid(tmp_path, 0)}" if killed == 0 else f"process 1 of 3 (pid {pid(tmp_path, 1)}"
    assert name in said and "is gone without a word" in said
    assert len(said.splitlines()) == 1
    assert seconds < 25


def pid(folder: Path, rank: int) -> str:
    return (folder / f"pid{rank}").read_text()


def test_the_same_error_on_every_process_is_told_once(run: Run) -> None:
    codes, said, seconds = run(*["raise ConfigError('run.x: wrong')"] * 3)
    assert codes == [2, 2, 2]
    assert said.count("run.x: wrong") == 1
    assert seconds < 25


def test_different_errors_are_all_told(run: Run) -> None:
    _, said, _ = run("time.sleep(0.1); raise DataError('a')", "raise DataError('b')")
    assert sorted(line.rpartition(": ")[2] for line in said.splitlines()) == ["a", "b"]


@pytest.mark.parametrize("hit", [0, 2])
def test_a_cause_is_told_and_not_what_it_looks_like_elsewhere(hit: int, run: Run) -> None:
    parts = ["rest()", f"time.sleep(0.1); {KILLED}", "rest()"]
    parts[hit] = "raise RuntimeError('[gloo/pair.cc:1] Connection closed by peer')"
    codes, said, _ = run(*parts)
    assert codes == [1, -signal.SIGKILL, 1]
    assert said.startswith("Error: process 1 of 3 (pid ") and len(said.splitlines()) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_symptom_without_a_known_cause_is_told_itself(rank: int, run: Run) -> None:
    parts = ["rest()", "rest()"]
    parts[rank] = "raise RuntimeError('[gloo/pair.cc:1] Timed out')"
    codes, said, _ = run(*parts)
    assert codes == [1, 1]
    assert said.count("Timed out") == 1


@pytest.mark.parametrize("last", [0, 1])
def test_leaving_in_any_order_alarms_nobody(last: int, run: Run) -> None:
    parts = ["pass", "sys.exit(0)", "pass"]  # a script that simply ends leaves as well
    parts[last] = "time.sleep(2)"
    codes, said, seconds = run(*parts)
    assert (codes, said) == ([0, 0, 0], "")
    assert seconds > 1.5


def test_a_death_is_noticed_although_a_forked_child_lives_on(run: Run) -> None:
    codes, said, seconds = run("rest()", f"os.fork() or (os.close(1), os.close(2), rest()); {KILLED}")
    assert codes == [1, -signal.SIGKILL]
    assert "process 1 of 2" in said and seconds < 25


def test_holding_pythons_lock_is_no_alarm(run: Run) -> None:
    # One call into C that never lets another thread run, for some seconds.
    busy = "start = time.monotonic(); sum(range(10**8)); assert time.monotonic() > start + 0.5"
    codes, said, _ = run(busy, busy)
    assert (codes, said) == ([0, 0], "")


def test_strangers_are_turned_away() -> None:
    from lavis_peft.runners.line import connect, greeted, listen

    with listen(4) as server:
        port = server.getsockname()[1]
        wrong = connect(["localhost"], port, {"token": "guess", "rank": 1, "name": "x"}, "main")
        noise = socket.create_connection(("localhost", port))
        noise.sendall(b"GET / HTTP/1.1\r\n\r\n[")
        noise.shutdown(socket.SHUT_WR)
        right = connect(["localhost"], port, {"token": "secret", "rank": 1, "name": "x"}, "main")
        lines = greeted(server, "secret", 1)
    assert list(lines) == [1] and list(wrong.messages()) == []
    lines[1].send({"text": "a"})
    lines[1].close()
    assert list(right.messages()) == [{"text": "a"}]
    for end in (wrong, right, noise):
        end.close()


def test_a_machine_that_cannot_be_reached() -> None:
    from lavis_peft.runners.line import connect, listen

    with listen(1) as server:
        port = server.getsockname()[1]
    assert connect(["localhost", "host.invalid"], port, {}, "main") is None
