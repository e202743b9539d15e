"""The public easy-VQA set: 64×64 pictures of one shape, questions with 13 answers.

https://github.com/vzhou842/easy-VQA; the data comes with the package easy-vqa.
"""

import importlib.util
import json
import re
from pathlib import Path

from lavis_peft.datasets.records import Record, choice_problems, raise_if
from lavis_peft.errors import DataError, MissingExtra

CHOICES = {
    "yes_no": ("yes", "no"),
    "color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
    "shape": ("circle", "rectangle", "triangle"),
}

_COLOR = re.compile(r"what (color is|is the color of) the \w+\?")
_SHAPE = re.compile(r"what (shape .+|is the \w+ shape)\?")
_YES_NO = re.compile(r"(is|does) .+\?")
_NEGATED = re.compile(r"\b(not|no)\b")


def question_type(question: str) -> str | None:
    """The kind of a question, from its own words alone: the answer is not looked at.

    Returns:
        ``yes_no/plain``, ``yes_no/negated``, ``color`` or ``shape``; None for a question of no known form.
    """
    if _YES_NO.fullmatch(question):
        return "yes_no/negated" if _NEGATED.search(question) else "yes_no/plain"
    if _COLOR.fullmatch(question):
        return "color"
    return "shape" if _SHAPE.fullmatch(question) else None


def data_dir() -> Path:
    """The data folder of the installed package.

    Raises:
        MissingExtra: easy-vqa isn't installed.
    """
    # Found, not imported: only its files are wanted.
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "the dataset easy_vqa needs the package easy-vqa, which the extra `demo` brings: "
            "pip install 'lavis-peft[demo]'"
        )
    return Path(spec.origin).parent / "data"


def check_answers(folder: Path) -> None:
    """See that the set's own list of answers is the one known here.

    Raises:
        DataError: It isn't.
    """
    path = folder / "answers.txt"
    try:
        listed = set(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); easy-VQA's data folder holds it") from None
    known = {choice for choices in CHOICES.values() for choice in choices}
    if listed != known:
        raise DataError(f"{path}: expected the answers {sorted(known)}, found {sorted(listed)}")


def read_split(folder: Path, split: str) -> list[Record]:
    """The questions of one of the set's two splits, as multiple choice among the answers of their kind.

    Args:
        folder: The set's data folder.
        split: ``train`` or ``test``.

    Raises:
        DataError: The file is missing or damaged, or holds a question of no known form.
    """
    path = folder / split / "questions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    images = path.parent / "images"
    records, problems = [], []
    for number, row in enumerate(rows):
        place = f"{path}: record {number + 1}"
        if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str)):
            problems.append(f"{place}: expected [question, answer, image number], found {str(row)[:60]!r}")
            continue
        question, answer, image = row
        kind = question_type(question)
        if kind is None:
            problems.append(f"{place}: a question of no known form: {question!r}")
            continue
        choices = CHOICES[kind.split("/")[0]]
        record = Record(
            image=f"{images}/{image}.png",
            image_id=f"{split}/{image}",
            question=question,
            answers=(answer,),
            choices=choices,
            question_id=str(number),
            place=place,
            question_type=kind,
        )
        problems += choice_problems(record, ())
        records.append(record)
    raise_if(problems)
    return records
