"""Errors that are the user's to mend: the command line prints their text and exits with code 2."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what the user gave. Its text names the place, what was found and what is allowed."""


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


class MissingExtra(UserError, ImportError):
    """Something optional was used that isn't installed; names the extra that brings it."""


class MissingFeature(UserError):
    """An installed library is too old for what was asked; names the version that isn't."""
