"""Small checks of configuration sections, shared by everything that reads one."""

import difflib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def listing(names: Iterable[object]) -> str:
    """The names, sorted and separated by commas, for the end of an error sentence."""
    return ", ".join(sorted(str(name) for name in names))


def suggestion(word: object, allowed: Iterable[object]) -> str:
    """`` (did you mean 'x'?)`` for a near miss, else nothing."""
    close = difflib.get_close_matches(str(word), [str(name) for name in allowed], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def unknown_keys(section: Mapping[Any, Any], allowed: Iterable[str], where: str) -> list[str]:
    """One sentence for each key of a section that nothing reads.

    Args:
        section: The section as the user gave it.
        allowed: The keys that are read.
        where: The section's dotted name.
    """
    known = set(allowed)
    return [
        f"{where}.{key}: unknown key{suggestion(key, known)}; allowed: {listing(known)}"
        for key in section
        if key not in known
    ]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def shortened(names: Iterable[object], shown: int = 10) -> str:
    """The first names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def unwritable(folder: Path) -> str | None:
    """Why nothing can be put into a folder, or None; found by trying, before the hours that what is written may take.

    Args:
        folder: Its full path. Where it isn't there yet, the nearest folder above it is tried; nothing is made.
    """
    there = folder
    try:
        # Path.exists raises where a name is too long, or a folder above may not be entered.
        there = next(place for place in (folder, *folder.parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return f"can't be written to ({there}: {error.strerror or first_line(error)})"
    return None
