"""Errors that end in one clear message: the command line prints their text and exits with their code."""

from collections.abc import Sequence
from typing import ClassVar


class UserError(Exception):
    """A mistake in what the user gave. Its text names the place, what was found and what is allowed."""

    #: What the command line exits with.
    exit_code: ClassVar[int] = 2
    #: What the message begins with.
    heading: ClassVar[str] = "Error"


class RunFailed(UserError):
    """A run that was asked for rightly and failed on its own, such as for want of disk space."""

    exit_code: ClassVar[int] = 1


class RunStopped(UserError):
    """A run that a signal ended in good order. Its text says how to go on with it."""

    #: sysexits.h's EX_TEMPFAIL: try again later.
    exit_code: ClassVar[int] = 75
    heading: ClassVar[str] = "Stopped"


class TrainingDiverged(RunFailed):
    """Loss or gradient isn't a finite number any more."""


class WriteError(RunFailed, OSError):
    """A file couldn't be written; names it and the reason. What was at its path before is still there."""


class DiskFull(WriteError):
    """No room, or no quota, for a file that was to be written."""


class ConfigError(UserError):
    """One or several problems in a run configuration, reported together.

    Args:
        problems: One sentence each, naming the key as the user typed it.
        where: The file or section the problems were found in.
    """

    def __init__(self, problems: str | Sequence[str], where: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.where = where
        head = f"{where}: " if where else ""
        if len(self.problems) == 1:
            super().__init__(head + self.problems[0])
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            super().__init__(f"{head}{len(self.problems)} problems:{lines}")


class DataError(UserError):
    """An annotation or an image that can't be used; names the file and the record."""


class CheckpointError(UserError):
    """A checkpoint that can't be read, or that belongs to another model."""


class VerificationFailed(RunFailed):
    """What was written computes something else than what it was made of; it was taken away again."""


class MissingExtra(UserError, ImportError):
    """Something optional was used that isn't installed; names the extra that brings it."""


class MissingFeature(UserError):
    """An installed library is too old for what was asked; names the version that isn't."""
