"""Annotation records: what one question is, and every check on it."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lavis_peft.errors import DataError

_OPTIONAL = ("choices", "context", "groups", "question_id", "question_type")
_FIELDS = ("image", "question", "answer", *_OPTIONAL)
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one picture.

    Args:
        image: Path of the picture.
        image_id: The picture as the annotation names it.
        question: The question; may be empty where the prompt doesn't use it.
        answers: The right answers; in training each is a target.
        choices: The answers to choose from; none for an open question.
        question_id: Unique in its split.
        place: File and line or number, for messages.
        question_type: For the metrics; ``a/b`` counts under ``a`` and under ``a/b``.
        context: What the prompt's ``{context}`` stands for.
        groups: For the metrics, which are also given for each label: from a name, as ``grade``, to its labels.
    """

    image: str
    image_id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    question_id: str
    place: str
    question_type: str = ""
    context: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """File, place and id, for messages."""
        return f"{self.place} (question_id {self.question_id!r})"


def summary(problems: Sequence[str], head: str = "") -> str:
    """The first problems and how many there are, as one message."""
    if len(problems) == 1 and not head:
        return problems[0]
    lines = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{head or f'{len(problems)} problems:'}{lines}{more}"


class _RecordReader:
    """Reads the fields of one record, noting what is wrong."""

    def __init__(self, raw: Mapping[str, Any], place: str) -> None:
        self._raw = raw
        self._place = place
        self.problems: list[str] = []

    def _add(self, text: str) -> None:
        self.problems.append(f"{self._place}: {text}")

    def text(self, key: str, needed: bool = False) -> str:
        value = self._raw.get(key)
        if value is None:
            if needed:
                near = _near(key, tuple(name for name in self._raw if name not in _FIELDS))
                self._add(f"no '{key}'" + (f"; is '{near}' meant to be it?" if near else ""))
            return ""
        if not isinstance(value, str):
            self._add(f"'{key}' must be a text, found {value!r}")
            return ""
        if needed and not value.strip():
            self._add(f"'{key}' is blank")
        self._check_text(key, value)
        return value

    def _check_text(self, key: str, value: str) -> None:
        # JSON's \ud800 is half of a character, which no file or terminal takes; better said here than at the run's end.
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            self._add(f"'{key}' has half a character (a lone surrogate) in it: {value!r}")
        if "\0" in value:
            self._add(f"'{key}' has a zero byte in it: {value!r}")

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._raw.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            self._add(f"'{key}' must be a list of texts, found {value!r}")
            return ()
        for entry in value:
            self._check_text(key, entry)
        return tuple(value)

    def groups(self) -> dict[str, tuple[str, ...]]:
        value = self._raw.get("groups")
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._add(f"'groups' must be a mapping from a name to a label or a list of labels, found {value!r}")
            return {}
        groups = {str(name): tuple(found) if isinstance(found, list) else (found,) for name, found in value.items()}
        for name, labels in groups.items():
            if not all(isinstance(label, str) and label.strip() for label in labels):
                self._add(f"'groups': {name!r} must be a text or a list of texts, found {value[name]!r}")
        return groups

    def answers(self) -> tuple[str, ...]:
        value = self._raw.get("answer")
        if not isinstance(value, list):
            return (self.text("answer", needed=True),)
        if not value:
            self._add("'answer' is an empty list")
        return self.texts("answer")

    def identity(self, default: str) -> str:
        value = self._raw.get("question_id")
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            self._add(f"'question_id' must be a text or a whole number, found {value!r}")
            return default
        self._check_text("question_id", str(value))
        return str(value)

    def typos(self) -> None:
        # Other fields are the user's own business; one that nearly spells an optional field of ours isn't.
        absent = tuple(name for name in _OPTIONAL if name not in self._raw)
        for key in self._raw:
            if key not in _FIELDS and (near := _near(key, absent)):
                self._add(f"unknown field '{key}' (did you mean '{near}'?)")


@lru_cache(maxsize=1024)
def _near(word: str, names: tuple[str, ...]) -> str | None:
    # Cached: a set of a million records has a handful of distinct field names, and comparing them is slow.
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.8)), None)


def read_record(
    raw: Any,
    folder: str,
    place: str,
    default_id: str,
    *,
    fixed_choices: tuple[str, ...],
    used: Iterable[str],
    problems: list[str],
) -> Record | None:
    """One record of an annotation file as a value.

    Args:
        raw: What the file holds.
        folder: What relative image paths count from.
        place: File and line or number.
        default_id: The question_id of a record that brings none.
        fixed_choices: The choices of a record that brings none.
        used: The fields that prompt and target use.
        problems: Every problem found is added here.

    Returns:
        The record; None if one of its fields is missing or wrong.
    """
    if not isinstance(raw, Mapping):
        problems.append(f'{place}: expected a record {{"image": …, "answer": …}}, found {str(raw)[:60]!r}')
        return None
    used = set(used)
    reader = _RecordReader(raw, place)
    reader.typos()
    image = reader.text("image", needed=True)
    record = Record(
        image=os.path.normpath(os.path.join(folder, image)),
        image_id=image,
        question=reader.text("question", needed="question" in used),
        answers=reader.answers(),
        choices=reader.texts("choices") or fixed_choices,
        question_id=reader.identity(default_id),
        place=place,
        question_type=reader.text("question_type"),
        context=reader.text("context"),
        groups=reader.groups(),
    )
    problems += reader.problems or choice_problems(record, used)
    return None if reader.problems else record


def choice_problems(record: Record, used: Iterable[str]) -> list[str]:
    """What is wrong with a record's choices: none where the template needs them, doubles, the answer not among them."""
    if not record.choices:
        lettered = sorted({"options", "choices", "letter"} & set(used))
        wanted = "".join(f"{{{field}}}" for field in lettered)
        return [f"{record.place}: no 'choices', but the templates use {wanted}"] if lettered else []
    found = []
    if len(set(record.choices)) < len(record.choices):
        found.append(f"{record.place}: a choice is listed twice: {list(record.choices)}")
    if len(record.choices) < 2:
        found.append(f"{record.place}: 'choices' needs at least two, found {list(record.choices)}")
    for answer in dict.fromkeys(record.answers):
        if answer not in record.choices:
            found.append(f"{record.place}: answer {answer!r} isn't among the choices {list(record.choices)}")
    return found


def check_unique(records: Iterable[Record]) -> list[str]:
    """One sentence for each question_id that an earlier record has already."""
    seen: dict[str, str] = {}
    problems = []
    for record in records:
        if record.question_id in seen:
            problems.append(f"{record.where}: the same question_id as {seen[record.question_id]}")
        seen.setdefault(record.question_id, record.place)
    return problems


def raise_if(problems: Sequence[str]) -> None:
    """Raise what was found.

    Raises:
        DataError: There is at least one problem.
    """
    if problems:
        raise DataError(summary(problems))
