"""A process's last moment: Python is taken apart only when torch's threads have nothing left to do with it."""

import atexit
import os
import time
from pathlib import Path

#: Longest wait for the other threads, in seconds: one that never rests is none of those meant here.
PATIENCE = 10.0
#: Between two looks, seconds.
_PAUSE = 0.01
#: How often in a row all must be at rest. One that waits for Python's lock seems to be, and gets it in the pause.
_LOOKS = 5
#: For systems that don't tell what a thread does.
_BLIND_PAUSE = 0.5


def settle_at_exit() -> None:
    """Have this process :func:`settle` when it ends, whatever script it runs and whatever its exit code is."""
    atexit.register(settle)


def settle() -> None:
    """Wait until this process's other threads are at rest, for some seconds at most.

    gloo's threads let go of a collective's tensors a moment after the collective is done, and need Python's lock for
    that. Where Python is being taken apart by then, it ends the thread that asks, in the midst of C++ code that can't
    be left so: "terminate called without an active exception", SIGABRT, and torchrun reports a finished run as failed.
    Leaving the process group doesn't help, since a wrapped model holds it too.
    """
    until = time.monotonic() + PATIENCE
    rested = 0
    while rested < _LOOKS and time.monotonic() < until:
        busy = _others_are_busy()
        if busy is None:
            time.sleep(_BLIND_PAUSE)
            return
        rested = 0 if busy else rested + 1
        time.sleep(_PAUSE)


def _others_are_busy() -> bool | None:
    """Whether any other thread runs, or would on a free core; None where the system doesn't tell."""
    try:
        threads = [thread for thread in Path("/proc/self/task").iterdir() if int(thread.name) != os.getpid()]
    except OSError:
        return None
    return any(_state(thread) in ("R", "D") for thread in threads)


def _state(thread: Path) -> str:
    try:
        # After the name, which is in parentheses and may hold anything.
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return ""
