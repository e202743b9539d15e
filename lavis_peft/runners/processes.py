"""Which process it was, and whether it still runs: a number alone doesn't say so, since numbers are given again."""

import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: The system counts a process's start in whole ticks, and the time of its own start to the second.
_SLACK = 2.0


def start_ticks(pid: int) -> int | None:
    """When a process of this machine started, in the system's ticks since its own start; None where it can't say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may have spaces and parentheses in it.
    fields = text.rpartition(")")[2].split()
    # A zombie has ended; its parent hasn't asked for its exit code yet.
    return int(fields[19]) if fields[0] not in "ZX" else None


def boot_id() -> str:
    """This machine's name for its current start; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_running(pid: int, ticks: int | None = None) -> bool:
    """Whether a process of this machine runs.

    Args:
        pid: Its number.
        ticks: When it started, as `start_ticks` said then; another start is another process.
    """
    if Path("/proc/self/stat").is_file():
        now = start_ticks(pid)
        return now is not None and (ticks is None or now == ticks)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it runs, and is another user's
    return True


def runs_since(pid: int, moment: float) -> bool:
    """Whether a process of this machine runs and did so at a moment.

    Args:
        pid: Its number.
        moment: Seconds since 1970.
    """
    ticks = start_ticks(pid)
    if ticks is None:
        return is_running(pid)
    started = _boot_time() + ticks / os.sysconf("SC_CLK_TCK")
    return started <= moment + _SLACK


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the file says.

    Args:
        host: Its machine.
        pid: Its process there.
        started: When it took the lock, for people.
        command: Its command line.
        ticks: When the process started, by the machine's clock of
        boot: The machine's start that this clock counts from.
    """

    host: str
    pid: int
    started: str
    command: str
    ticks: int | None = None
    boot: str = ""

    @classmethod
    def this(cls) -> "Holder":
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S"),
            command=shlex.join(sys.argv),
            ticks=start_ticks(os.getpid()),
            boot=boot_id(),
        )

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """The holder in a lock file; None where it names none, as after a kill between making and writing it."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether this machine knows that the process has ended; of another machine's it knows nothing."""
        if self.host != socket.gethostname():
            return False
        if self.boot and self.boot != boot_id():
            return True
        return not is_running(self.pid, self.ticks)

    def text(self) -> bytes:
        """What stands in the lock file."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started} ({self.command})"
