"""Finding and reading annotation files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_peft.checks import first_line
from lavis_peft.datasets.spec import Annotations
from lavis_peft.errors import DataError


def locate(path: str, cache_root: str | None) -> Path | None:
    """Where a path of a run config points to, if it exists.

    A relative path counts from the working directory. LAVIS counts from its cache root; that is tried second, so that
    configs written for LAVIS go on working.
    """
    given = Path(path).expanduser()
    candidates = [given]
    if cache_root and not given.is_absolute():
        candidates.append(Path(cache_root).expanduser() / given)
    return next((candidate.absolute() for candidate in candidates if candidate.exists()), None)


def annotation_files(annotations: Annotations, where: str, cache_root: str | None, remedy: str = "") -> list[Path]:
    """The files of one split.

    Args:
        annotations: The split's section.
        where: The section's dotted name in messages.
        cache_root: LAVIS's cache folder.
        remedy: What to do about a file that isn't there.

    Raises:
        DataError: Naming every file that isn't there. Nothing is ever downloaded.
    """
    found, problems = [], []
    for index, storage in enumerate(annotations.storage):
        url = annotations.url[index] if index < len(annotations.url) else ""
        # LAVIS copies a local file named by `url` to `storage`; reading it in place comes to the same.
        path = locate(storage, cache_root) or (locate(url, cache_root) if url else None)
        if path is None:
            advice = f"nothing is downloaded here: fetch {url} yourself" if url else remedy
            problems.append(
                f"{where}.storage: no file {storage!r} (working directory {os.getcwd()})"
                + (f"; {advice}" if advice else "")
            )
        elif path.is_dir():
            problems.append(f"{where}.storage: {storage!r} is a folder; expected a JSON or JSONL file")
        else:
            found.append(path)
    if problems:
        raise DataError("\n".join(problems))
    return found


def read_annotations(path: Path) -> list[tuple[str, Any]]:
    """The records of a JSON list or of a JSONL file (one record a line), told apart by their first character.

    Returns:
        Each record's place, ``record 3`` or ``line 3``, and what is there; not yet checked.

    Raises:
        DataError: The file can't be read, isn't JSON, or holds no records; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path}: the file is empty; expected a JSON list of records, or one record a line")
    records = _json_list(path, text) if start == "[" else list(_json_lines(path, text))
    if not records:
        raise DataError(f"{path}: the list is empty; expected at least one record")
    return records


def _json_list(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {_fault(error, 'not JSON')}") from None
    return [(f"record {number}", entry) for number, entry in enumerate(entries, start=1)]


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines(): that also splits at characters which JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            kind = "neither a JSON list nor one record a line" if number == 1 else "not JSON"
            raise DataError(f"{path}: {_fault(error, kind, number)}") from None


def _fault(error: Exception, kind: str, line: int | None = None) -> str:
    """What is wrong with JSON; numbers of thousands of digits and endless nesting have errors without a place."""
    if isinstance(error, json.JSONDecodeError):
        return f"{kind}: line {line or error.lineno}, column {error.colno}: {error.msg}"
    return f"{f'line {line} ' if line else ''}can't be read: {first_line(error)}"
