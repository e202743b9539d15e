"""Finding and reading the files of a download, with everything that is missing or damaged reported at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from lavis_peft.checks import first_line
from lavis_peft.datasets.records import raise_if
from lavis_peft.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A file or folder of a download.

    Args:
        paths: Where it may be under the source folder; the first that exists is taken.
        origin: What brings it: the official download's name.
        folder: Whether it is a folder.
    """

    paths: tuple[str, ...]
    origin: str
    folder: bool = False

    def find(self, root: Path) -> Path | None:
        """Where it is, if it is there."""
        here = (root / path for path in self.paths)
        return next((path for path in here if (path.is_dir() if self.folder else path.is_file())), None)


def locate(root: Path, wanted: Mapping[str, Wanted]) -> dict[str, Path]:
    """Where everything wanted is.

    Raises:
        DataError: Names each thing that is missing, where it was looked for and which download brings it.
    """
    if not root.is_dir():
        raise DataError(f"--source {root}: no such folder")
    found = {name: item.find(root) for name, item in wanted.items()}
    missing = [
        f"no {'folder' if item.folder else 'file'} {' or '.join(item.paths)} (from {item.origin})"
        for name, item in wanted.items()
        if found[name] is None
    ]
    if missing:
        lines = "".join(f"\n  - {line}" for line in missing)
        raise DataError(f"--source {root}: not the whole download, looked for and not found:{lines}")
    return {name: path for name, path in found.items() if path is not None}


def read_json(path: Path, kind: type) -> Any:
    """A JSON file's content.

    Args:
        path: The file.
        kind: ``dict`` or ``list``, what the file must hold.

    Raises:
        DataError: It can't be read, isn't JSON or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
        raise DataError(f"{path}: can't be read ({first_line(error)})") from None
    if not isinstance(content, kind):
        wanted = "a mapping" if kind is dict else "a list"
        raise DataError(f"{path}: expected {wanted}, found {str(content)[:60]!r}")
    return content


def read_all(files: Mapping[str, tuple[Path, type]]) -> dict[str, Any]:
    """Several JSON files' contents.

    Args:
        files: Path and kind by name.

    Raises:
        DataError: With the problems of all files.
    """
    contents: dict[str, Any] = {}
    problems = []
    for name, (path, kind) in files.items():
        try:
            contents[name] = read_json(path, kind)
        except DataError as error:
            problems.append(str(error))
    raise_if(problems)
    return contents


class Unusable(Exception):
    """A question that can't be used; its text says why."""


def convert(
    items: Sequence[tuple[str, T]], make: Callable[[T], dict[str, Any] | None], title: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make a record of each item, with a progress bar.

    Args:
        items: What the download lists, each after its name in messages.
        make: The record; None for an item that isn't wanted. It may raise `Unusable`.
        title: Of the bar.

    Returns:
        The records, and a sentence for each item that can't be used.
    """
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    seen: set[str] = set()
    for name, item in tqdm(items, desc=title, unit="", disable=None, leave=False):
        try:
            record = make(item)
            if record is None:
                continue
            if record["question_id"] in seen:
                raise Unusable(f"{record['question_id']!r} is there twice")
        except Unusable as error:
            problems.append(f"{name}: {error}")
            continue
        seen.add(record["question_id"])
        records.append(record)
    return records, problems


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, a mapping.

    Raises:
        Unusable: It isn't one.
    """
    if not isinstance(value, Mapping):
        raise Unusable(f"expected a mapping, found {str(value)[:60]!r}")
    return value


def text(entry: Mapping[str, Any], key: str, needed: bool = True) -> str:
    """The text under a key; empty where the key is absent and not needed.

    Raises:
        Unusable: It isn't a text, or a needed one is blank.
    """
    value = entry.get(key)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value.strip()):
        raise Unusable(f"'{key}' must be a text, found {value!r}")
    return value


def texts(entry: Mapping[str, Any], key: str, inner: str) -> list[str]:
    """The text under ``inner`` of each mapping in the list under ``key``; empty where it is absent.

    Raises:
        Unusable: It isn't such a list.
    """
    found = entry.get(key)
    if not isinstance(found, list):
        raise Unusable(f"'{key}' must be a list, found {found!r}")
    return [text(mapping(each), inner, needed=False) for each in found]


def chosen(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """The ``choices`` and, by the index ``answer``, the right one.

    Raises:
        Unusable: The choices aren't at least two texts, or the index points to none of them.
    """
    choices, index = entry.get("choices"), entry.get("answer")
    if not isinstance(choices, list) or not all(_plain(choice) for choice in choices) or len(choices) < 2:
        raise Unusable(f"'choices' must be a list of at least two texts, found {choices!r}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise Unusable(f"'answer' must be the index of one of {len(choices)} choices, from 0, found {index!r}")
    texts = [str(choice) for choice in choices]
    return texts, texts[index]


def _plain(choice: Any) -> bool:
    return str(choice).strip() != "" and isinstance(choice, (str, int, float)) and not isinstance(choice, bool)


def without_repeats(choices: Sequence[str]) -> list[str]:
    """Each choice once, in order.

    Raises:
        Unusable: Only one is left.
    """
    kept = list(dict.fromkeys(choices))
    if len(kept) < 2:
        raise Unusable(f"'choices' repeats a single one: {list(choices)}")
    return kept
