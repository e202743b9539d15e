"""One process of a run: what it hears of the others' ends, and what they hear of its own."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lavis_peft.runners.line import Line

#: One death shows as its neighbours' errors too; the cause is chosen among what is known after so many seconds.
GRACE = 1.0
#: How long a failing process waits for the main one to have told the reason, seconds.
HEARING = 10.0

_GONE = "is gone without a word: killed (by the system, if memory ran out), or its machine is lost"

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a process ends.

    Args:
        text: The reason.
        code: The exit code.
        heading: What a message with this reason begins with.
        whole: Whether the text is all there is to tell, and no traceback belongs to it.
        symptom: Whether it is what the end of another process looks like from here.
    """

    text: str
    code: int
    heading: str = "Error"
    whole: bool = False
    symptom: bool = False


class Peer:
    """One process's part. Whom it listens to, and what it does then, is its subclass's.

    Args:
        rank: This process's number.
        world_size: How many there are.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.lock = threading.Lock()
        #: Whether this process ends on its own account, well or badly, and must not be ended for another's.
        self.ending = False
        self._lines: list[Line] = []

    def listen_to(self, lines: Mapping[int, Line]) -> None:
        """Listen to other processes from now on.

        Args:
            lines: By rank.
        """
        self._lines = list(lines.values())
        for rank, line in lines.items():
            # Daemons: they must not keep a process from ending.
            threading.Thread(target=self._listen, args=(rank, line), daemon=True).start()

    def _listen(self, rank: int, line: Line) -> None:
        for message in line.messages():
            if "bye" in message:
                return
            self.heard(rank, message)
        self.heard(rank, {"gone": line.name})

    def heard(self, rank: int, message: Message) -> None:
        """Take in what another process said, or that it is gone.

        Args:
            rank: Whose word it is.
            message: A failure's fields, or ``gone``.
        """
        raise NotImplementedError

    def fail(self, failure: "Failure", show: Callable[[], Any]) -> None:
        """Tell the others that this process fails, so that all end, and show the error if none of them does.

        Args:
            failure: What they are told.
            show: Shows the error.
        """
        raise NotImplementedError

    def tell(self, message: Message) -> None:
        """Send a message along every line."""
        for line in self._lines:
            line.send(message)

    def leave(self) -> None:
        """Say that this process ends well; what becomes of the others is no longer its business."""
        with self.lock:
            self.ending = True
        self.tell({"bye": True})

    def close(self) -> None:
        """Close every line without a word."""
        for line in self._lines:
            line.close()


class MainPeer(Peer):
    """The main process's part: it gathers what the others say, tells the reason once, and ends all."""

    def __init__(self, world_size: int) -> None:
        super().__init__(0, world_size)
        self._reports: list[tuple[int, int, str, int]] = []

    def heard(self, rank: int, message: Message) -> None:
        who = f"process {rank} of {self.world_size}"
        if "gone" in message:
            report = (1, rank, f"Error: {who} ({message['gone']}) {_GONE}", 1)
        else:
            text = f"{message['heading']}: {who}: {message['text']}"
            report = (2 if message["symptom"] else 0, rank, text, message["code"])
        with self.lock:
            self._reports.append(report)
            if len(self._reports) > 1:
                return
        time.sleep(GRACE)
        with self.lock:
            if self.ending:
                return
            # A failure's own account before a death, and a death before what it looks like elsewhere.
            _, rank, text, code = min(self._reports)
            sys.stderr.write(f"{text}\n")
            self.tell({"told_for": rank, "code": code})
            quit_now(code)

    def fail(self, failure: Failure, show: Callable[[], Any]) -> None:
        if failure.symptom:
            time.sleep(3 * GRACE)  # a listening thread ends this process meanwhile if it knows the cause
        with self.lock:
            self.ending = True
            show()  # before the others end: a launcher may then end this process, too
            self.tell({"told": failure.text if failure.whole else None, "code": failure.code})


class OtherPeer(Peer):
    """Every other process's part: it listens to the main one.

    Args:
        rank: This process's number.
        world_size: How many there are.
        speaks: Whether it is this process that tells of the main one's death.
    """

    def __init__(self, rank: int, world_size: int, speaks: bool) -> None:
        super().__init__(rank, world_size)
        self._speaks = speaks
        self._answer: Message = {}
        self._answered = threading.Event()
        self._failing = False

    def heard(self, rank: int, message: Message) -> None:
        with self.lock:
            if self._answered.is_set() or (self.ending and not self._failing):
                return
            if "gone" in message and self._speaks:
                sys.stderr.write(f"Error: the main process ({message['gone']}) {_GONE}\n")
            if not self._failing:
                quit_now(message.get("code", 1))
            self._answer = message
            self._answered.set()

    def fail(self, failure: Failure, show: Callable[[], Any]) -> None:
        with self.lock:
            self.ending = self._failing = True
        self.tell(asdict(failure))
        if self._answered.wait(HEARING):
            told = self._answer.get("told_for") == self.rank or self._answer.get("told") == failure.text
            if failure.symptom or (failure.whole and told):
                return
        show()


def quit_now(code: int) -> None:
    """End this process at once, whatever its other threads wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
