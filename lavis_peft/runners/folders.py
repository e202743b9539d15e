"""A run's folder and the checkpoint files in it."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

from lavis_peft.adapters.checkpoint import atomic_file, read_checkpoint, save_atomic
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.checkpoints import Progress

BEST = "checkpoint_best.pth"

#: What LAVIS's `now()` gives: the time to ten minutes, so that two runs, or two ranks, can share or miss a folder.
_LAVIS_JOB_ID = re.compile(r"\d{11}")


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
    by_lavis = _LAVIS_JOB_ID.fullmatch(job_id) is not None
    name = time.strftime("%Y%m%d%H%M%S") if by_lavis else job_id
    number = 1
    while by_lavis and (base / name).exists():
        number += 1
        name = f"{name.partition('-')[0]}-{number}"
    try:
        (base / name / "result").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return ConfigError(f"run.output_dir: can't make a folder in {base}: {error.strerror or error}")
    return name


class CheckpointFolder:
    """The checkpoint files of a run; only the main process touches them.

    The newest epoch's file is always there, so that a killed run loses one epoch at most.

    Args:
        folder: The run's folder.
        save_freq: Keep every n-th epoch's file besides; 0 or less keeps none.
    """

    def __init__(self, folder: Path, save_freq: int) -> None:
        self.folder = folder
        self._save_freq = save_freq

    @property
    def best(self) -> Path:
        """The best epoch's file."""
        return self.folder / BEST

    def of_epoch(self, epoch: int) -> Path:
        """An epoch's file."""
        return self.folder / f"checkpoint_{epoch}.pth"

    def save(self, content: dict[str, Any], best: bool = False) -> Path:
        """Write a checkpoint, under its epoch's name or as the best one.

        Args:
            content: Its ``epoch`` names the file.
            best: Write ``checkpoint_best.pth``.
        """
        path = self.best if best else self.of_epoch(content["epoch"])
        save_atomic(content, path)
        return path

    def drop(self, epoch: int) -> None:
        """Remove an epoch's file, unless `save_freq` keeps it."""
        kept = self._save_freq > 0 and epoch % self._save_freq == 0
        if distributed.is_main() and not kept:
            self.of_epoch(epoch).unlink(missing_ok=True)

    def adopt_best(self, resumed_from: str, progress: Progress) -> bool:
        """Bring the best checkpoint of a resumed run into this one's folder.

        Args:
            resumed_from: The checkpoint that the run resumes from; the best one lies beside it.
            progress: What that checkpoint says of the best epoch.

        Returns:
            Whether this folder now holds the weights that `progress` speaks of.
        """
        beside = Path(resumed_from).expanduser().parent / BEST
        if not beside.is_file() or read_checkpoint(beside).get("epoch") != progress.best_epoch:
            return False  # gone, or a later best of the run that was left off, whose metric we don't know
        with beside.open("rb") as source, atomic_file(self.best) as target:
            shutil.copyfileobj(source, target)
        return True
