"""`run.feature_cache` as a typed, checked value."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_peft.checks import listing, suggestion

#: What features are kept in, by the word in a run config.
DTYPES = {"half": "float16", "float32": "float32"}
_KEYS = ("dir", "dtype", "augmentations")


@dataclass(frozen=True)
class CacheSpec:
    """Where features are kept, and how.

    Args:
        dir: The folder; runs may share it.
        dtype: One of `DTYPES`.
        augmentations: Views of each picture where the image processor is random; 0 where it mustn't be.
    """

    dir: str
    dtype: str = "half"
    augmentations: int = 0

    @property
    def folder(self) -> Path:
        """The folder as an absolute path; a relative one counts from the working directory."""
        return Path(self.dir).expanduser().absolute()

    @property
    def effect(self) -> dict[str, Any] | None:
        """What of it changes a run's results; nothing where features are what the encoder gave, to the last bit."""
        if self.dtype == "float32" and not self.augmentations:
            return None
        return {"dtype": self.dtype, "augmentations": self.augmentations}

    def folder_problem(self) -> str:
        """Why features can't be kept in the folder, as far as can be seen without making it; "" if nothing is wrong."""
        place = self.folder
        try:
            os.stat(place / "files")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass  # the reasons below are plainer
        except OSError as error:
            return f"run.feature_cache: {self.dir}: can't be used: {error.strerror}"
        # Not by Path.exists, which raises where a folder above may not be entered.
        while not os.path.exists(place) and place != place.parent:
            place = place.parent
        if not os.path.isdir(place):
            what = "is a file, and must be a folder" if place == self.folder else f"{place} in it is a file"
            return f"run.feature_cache: {self.dir}: {what}"
        # One that is there may be complete, and needn't be written to.
        if place != self.folder and not os.access(place, os.W_OK | os.X_OK):
            return f"run.feature_cache: {self.dir}: no permission to write to {place}"
        return ""


def feature_cache(value: Any) -> CacheSpec:
    """A folder, or a mapping with `dir`, `dtype` and `augmentations`.

    Raises:
        ValueError: Says what the value must be.
    """
    if isinstance(value, CacheSpec):
        return value
    section = {"dir": value} if isinstance(value, str) else value
    if not isinstance(section, Mapping):
        raise ValueError(f"a folder, or a mapping of {listing(_KEYS)}")
    if unknown := [key for key in section if key not in _KEYS]:
        raise ValueError(f"a mapping of {listing(_KEYS)}, and not of {unknown[0]!r}{suggestion(unknown[0], _KEYS)}")
    found = {key: item for key, item in section.items() if item is not None}
    if not isinstance(found.get("dir"), str) or not found["dir"].strip():
        raise ValueError("a folder, or a mapping whose `dir` is one")
    try:
        Path(found["dir"]).expanduser()
    except RuntimeError as error:
        raise ValueError("a folder whose `~` is a user of this machine") from error
    if found.get("dtype", "half") not in DTYPES:
        raise ValueError(f"a mapping whose `dtype` is {' or '.join(DTYPES)}, not {found['dtype']!r}")
    views = found.get("augmentations", 0)
    if isinstance(views, bool) or not isinstance(views, int) or views < 0:
        raise ValueError(f"a mapping whose `augmentations` is a whole number, views of each picture, not {views!r}")
    return CacheSpec(found["dir"], found.get("dtype", "half"), views)
