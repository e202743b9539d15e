"""Signals that end a run in good order: between two steps while it trains, at once while it scores."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: What ends a run: a person's Ctrl-C, a scheduler's request to end, and Slurm's warning before a time limit.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: A second signal within so many seconds is the first one again: a terminal and torchrun both pass on one Ctrl-C.
ECHO = 1.0


class Stopped(BaseException):
    """Ends the run. Like KeyboardInterrupt no Exception, so that nothing on the way takes it for a failure.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name


class StopSignals:
    """Notes a signal for the training loop to heed, or raises `Stopped` where nothing can be lost by that."""

    def __init__(self) -> None:
        #: The signal that came, else 0.
        self.received = 0
        self._since = 0.0
        self._at_once = False
        self._pid = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals inside the `with` block; outside of the main thread Python can't, and nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self._at_once, self._pid = 0, False, os.getpid()
        # One that is ignored stays so: a shell does that for commands in the background.
        heeded = [number for number in HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
        before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None stands for a handler that isn't Python's, which can't be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Raise inside the `with` block as soon as a signal comes.

        Raises:
            Stopped: A signal came in the block or before it.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            Stopped: One did.
        """
        if self.received:
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a data worker, forked with this handler; it ends when the run ends it
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
            if self._at_once:
                raise Stopped(number)
            # Not the logger: it may have been interrupted in the middle of a line.
            os.write(2, f"{signal.Signals(number).name}: ends after this step; a second one ends it now\n".encode())
        elif now - self._since > ECHO:
            raise KeyboardInterrupt


def ignore_in_worker(worker: int) -> None:
    """For a DataLoader's `worker_init_fn`: what is sent to all of a run's processes is the run's to heed.

    A worker that dies of it would take the step with it that is to be finished. The run's end ends it all the same.

    Args:
        worker: Its number.
    """
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
