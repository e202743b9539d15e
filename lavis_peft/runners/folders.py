"""A run's folder and the checkpoint files in it."""

import math
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lavis_peft.adapters.checkpoint import atomic_file, read_checkpoint, save_atomic
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.checkpoints import Progress

BEST = "checkpoint_best.pth"
#: Written at the very end of a run, with its test metrics.
FINISHED = "finished.json"

#: What LAVIS's `now()` gives: the time to ten minutes, so that two runs, or two ranks, can share or miss a folder.
_LAVIS_JOB_ID = re.compile(r"\d{11}")
_ORDINARY = re.compile(r"checkpoint_(\d+)(?:_(\d+))?\.pth")

#: Epoch, and iterations of it that are done; a whole epoch has infinitely many.
Moment = tuple[int, float]
#: Looks at a checkpoint's content, given its name too.
Check = Callable[[dict[str, Any], str], object]


def moment(epoch: int, iteration: int = 0) -> Moment:
    """When a checkpoint was taken, comparable with another's.

    Args:
        epoch: The epoch it belongs to.
        iteration: How many of its iterations are done; 0 is the whole epoch.
    """
    return epoch, iteration or math.inf


def make_run_folder(output_dir: str, job_id: str) -> Path:
    """Make ``output_dir/<job id>`` with its ``result/``, the same on every process.

    Args:
        output_dir: Relative to where the run starts; ``~`` is the user's home.
        job_id: A name; one of LAVIS's own making gives way to the time to the second, made unique.

    Raises:
        ConfigError: The folder can't be made.
    """
    base = Path(output_dir).expanduser().absolute()
    made = distributed.from_main(_make(base, job_id) if distributed.is_main() else None)
    if isinstance(made, ConfigError):
        raise made
    return base / made


def _make(base: Path, job_id: str) -> "str | ConfigError":
    """The folder's name; an error is returned, so that every process can raise it."""
    try:
        name = _make_new(base) if _LAVIS_JOB_ID.fullmatch(job_id) else job_id
        (base / name / "result").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return ConfigError(f"run.output_dir: can't make a folder in {base}: {error.strerror or error}")
    return name


def _make_new(base: Path) -> str:
    """Make a folder named by the time that no other run has, or gets at the same moment."""
    base.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y%m%d%H%M%S")
    number = 1
    while True:
        name = started if number == 1 else f"{started}-{number}"
        try:
            (base / name).mkdir()
            return name
        except FileExistsError:
            number += 1


def kept_files(folder: Path) -> list[tuple[Moment, Path]]:
    """The ordinary checkpoint files of a run's folder with the moments in their names, oldest first."""
    found = []
    for path in folder.glob("checkpoint_*.pth"):
        if named := _ORDINARY.fullmatch(path.name):
            found.append((moment(int(named[1]), int(named[2] or 0)), path))
    return sorted(found)


class CheckpointFolder:
    """The checkpoint files of a run; only the main process touches them.

    The newest file is always there, so that a killed run loses what came after it at most.

    Args:
        folder: The run's folder.
        save_freq: Keep every n-th epoch's file besides; 0 or less keeps none.
        keep: How many of the newest files stay.
    """

    def __init__(self, folder: Path, save_freq: int, keep: int = 1) -> None:
        self.folder = folder
        self._save_freq = save_freq
        self._keep = max(keep, 1)

    @property
    def best(self) -> Path:
        """The best epoch's file."""
        return self.folder / BEST

    def of(self, epoch: int, iteration: int = 0) -> Path:
        """The file of an epoch, or of a moment within it."""
        return self.folder / (f"checkpoint_{epoch}_{iteration}.pth" if iteration else f"checkpoint_{epoch}.pth")

    def save(self, content: dict[str, Any], best: bool = False, prune: bool = True) -> Path:
        """Write a checkpoint, under its epoch's name or as the best one; then remove what is out of date.

        Args:
            content: Its ``epoch`` and ``iteration`` name the file.
            best: Write ``checkpoint_best.pth``.
            prune: Remove what is out of date.

        Raises:
            DiskFull, WriteError: It can't be written; every file that was there still is.
        """
        epoch, iteration = content["epoch"], content.get("iteration") or 0
        path = self.best if best else self.of(epoch, iteration)
        save_atomic(content, path)
        if prune and not best:
            self._prune(moment(epoch, iteration))
        return path

    def drop(self, epoch: int, iteration: int = 0) -> None:
        """Remove a file, unless `save_freq` keeps it."""
        if distributed.is_main() and not self._is_kept(moment(epoch, iteration)):
            self.of(epoch, iteration).unlink(missing_ok=True)

    def _prune(self, written: Moment) -> None:
        """Remove all but the newest up to the file just written, and what `save_freq` keeps.

        Files that are later by name are of a moment that the run hasn't come to again: they were passed over as
        damaged, and must not count as the newest ones.
        """
        older = [(at, path) for at, path in kept_files(self.folder) if at < written]
        for at, path in _but_last(older, self._keep - 1):
            if not self._is_kept(at):
                path.unlink(missing_ok=True)

    def _is_kept(self, at: Moment) -> bool:
        epoch, iteration = at
        return self._save_freq > 0 and math.isinf(iteration) and epoch % self._save_freq == 0

    def adopt_best(self, resumed_from: str, progress: Progress, check: Check | None = None) -> bool:
        """Bring the best checkpoint of a resumed run into this one's folder.

        Args:
            resumed_from: The checkpoint that the run resumes from; the best one lies beside it.
            progress: What that checkpoint says of the best epoch.
            check: Called with the best checkpoint's content and name; stops at that of another model, which would
                else be found out at the run's end.

        Returns:
            Whether this folder now holds the weights that `progress` speaks of.

        Raises:
            CheckpointError: The best checkpoint can't be read, or what `check` raises.
        """
        beside = Path(resumed_from).expanduser().parent / BEST
        if not beside.is_file():
            return False
        found = read_checkpoint(beside)
        if found.get("epoch") != progress.best_epoch:
            return False  # a later best of the run that was left off, whose metric we don't know
        if check is not None:
            check(found, str(beside))
        if beside.absolute() != self.best:
            with beside.open("rb") as source, atomic_file(self.best) as target:
                shutil.copyfileobj(source, target)
        return True


def _but_last(items: list[tuple[Moment, Path]], count: int) -> Iterable[tuple[Moment, Path]]:
    return items[: len(items) - count] if count else items
