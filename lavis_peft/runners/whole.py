"""Which checkpoint a run can go on from: the newest whole one of the run that was started last."""

import logging
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import CheckpointError
from lavis_peft.runners import processes
from lavis_peft.runners.content import content_problems, missing_entries
from lavis_peft.runners.folders import BEST, FINISHED, Moment, kept_files, moment

_STARTED = re.compile(r"(\d{14})(?:-(\d+))?")
_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.tmp")

_log = logging.getLogger(__name__)


def newest_run(output_dir: str | os.PathLike[str]) -> Path | None:
    """The folder of the run that was started last, of those that saved something or finished.

    Args:
        output_dir: `run.output_dir`; relative to where the run starts, ``~`` is the user's home.

    Returns:
        The folder, or None where there is none.
    """
    base = Path(output_dir).expanduser().absolute()
    folders = [path for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
    runs = [path for path in folders if kept_files(path) or (path / BEST).is_file() or (path / FINISHED).is_file()]
    return max(runs, key=_start, default=None)


def _start(folder: Path) -> tuple[float, int]:
    """When a run started, by its folder's name; by its files where it has a name of the user's."""
    named = _STARTED.fullmatch(folder.name)
    if named is not None:
        try:
            return time.mktime(time.strptime(named[1], "%Y%m%d%H%M%S")), int(named[2] or 1)
        except ValueError:
            pass  # fourteen digits that are no time
    return min(path.stat().st_mtime for path in folder.iterdir()), 0


@dataclass(frozen=True)
class Whole:
    """A checkpoint file that was read and found whole.

    Args:
        path: The file.
        content: What is in it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def moment(self) -> Moment:
        """When it was taken, as it says itself."""
        return moment(self.content["epoch"], self.content.get("iteration") or 0)


def newest_whole(folder: Path) -> Whole | None:
    """The newest checkpoint of a run that can be resumed from; damaged ones are warned of and passed over.

    Args:
        folder: The run's folder.

    Returns:
        The file with its content, or None where the run has saved none.

    Raises:
        CheckpointError: There are checkpoints, and none of them is whole.
    """
    # By what the files say of themselves: a copy has another time, and a name can be anything.
    claimed = {path: at for at, path in kept_files(folder)}
    damaged: list[str] = []
    newest: Whole | None = None
    for path in sorted(claimed, key=claimed.__getitem__, reverse=True):
        if newest is not None and newest.moment >= claimed[path]:
            break
        newest = _newer(newest, _read(path, damaged))
    if (newest is None or damaged) and (folder / BEST).is_file():
        newest = _newer(newest, _read(folder / BEST, damaged))
    if newest is None and damaged:
        raise CheckpointError(
            f"{folder}: none of the run's checkpoints is whole; to start afresh, move the folder away:"
            + "".join(f"\n  - {problem}" for problem in damaged)
        )
    for problem in damaged:
        _log.warning("Passed over: %s", problem)
    return newest


def _newer(first: Whole | None, second: Whole | None) -> Whole | None:
    if first is None or second is None:
        return first or second
    return second if second.moment > first.moment else first


def _read(path: Path, damaged: list[str]) -> Whole | None:
    """Read a checkpoint, or add the reason why it can't be to the list."""
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        damaged.append(str(error))
        return None
    if problems := content_problems(content) + [f"it has no {key}" for key in missing_entries(content)]:
        damaged.append(f"{path}: not a checkpoint that a run can go on from: {'; '.join(problems)}")
        return None
    return Whole(path, content)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in a run's folder.

    Call it only with the run's lock held: then no other process of the run can be writing.

    Args:
        folder: The run's folder.

    Returns:
        What was removed.
    """
    removed = []
    for path in (*folder.glob(".*.tmp"), *folder.glob("result/.*.tmp")):
        named = _TEMPORARY.fullmatch(path.name)
        # Some other command may be writing a report here this very moment.
        if named and f".{socket.gethostname()}." in path.name and _may_be_writing(int(named["pid"]), path):
            continue
        path.unlink(missing_ok=True)
        removed.append(path)
    if removed:
        _log.info("Removed what a killed process left half-written: %s", ", ".join(path.name for path in removed))
    return removed


def _may_be_writing(pid: int, path: Path) -> bool:
    return pid != os.getpid() and processes.runs_since(pid, path.stat().st_mtime)
