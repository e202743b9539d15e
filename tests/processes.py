"""The tests' end of `nursery.py`: real processes that start in milliseconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lavis_peft

ROOT = Path(lavis_peft.__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Nursery:
    """Starts processes; `hash_seed` is Python's, the same for all that it starts."""

    def __init__(self, hash_seed: int = 0) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._process.stdout.readline()

    def ask(self, **request: Any) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, code: str, output: Path, *arguments: object, cwd: Path | None = None, **env: object) -> "Process":
        """Run a Python program.

        Args:
            code: Its text.
            output: A file that gets what it writes to standard output and standard error, at its end.
            arguments: Its command line.
            cwd: Where it runs.
            env: Added to its environment.
        """
        answer = self.ask(
            code=code,
            argv=["program", *map(str, arguments)],
            env={key: str(value) for key, value in env.items()},
            cwd=str(cwd or output.parent),
            output=str(output),
        )
        return Process(self, answer["pid"], output)

    def ranks(self, code: str, folder: Path, arguments: Sequence[Sequence[object]], **env: object) -> "list[Process]":
        """Run a program once for each list of arguments, as the processes of a run; each writes to ``rankN.txt``."""
        folder.mkdir(exist_ok=True)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.free_port(), "WORLD_SIZE": len(arguments), **env}
        return [
            self.start(code, folder / f"rank{rank}.txt", *own, RANK=rank, LOCAL_RANK=rank, **shared)
            for rank, own in enumerate(arguments)
        ]

    @staticmethod
    def free_port() -> int:
        """A port that nobody listens on."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def close(self) -> None:
        """End it, and whatever still runs."""
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@dataclass
class Process:
    """A process that a nursery started."""

    nursery: Nursery
    pid: int
    output: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask(pid=self.pid)["code"]
        return self.code

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} went on for {timeout} s:\n{self.said()[-4000:]}")
            time.sleep(0.01)
        return self.code  # type: ignore[return-value]

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        """What it has written so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""
