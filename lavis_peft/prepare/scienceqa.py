"""ScienceQA (Lu et al. 2022): the questions with a picture, as Kim et al. 2024 use them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.prepare.benchmark import SPLITS, Benchmark, Extract
from lavis_peft.prepare.source import (
    Unusable,
    Wanted,
    chosen,
    convert,
    locate,
    mapping,
    read_all,
    text,
    without_repeats,
)

_TEXTS = "the repository lupantech/ScienceQA, folder data/scienceqa"
_REPEATED = "a choice is listed twice; it is offered once"


def _wanted() -> dict[str, Wanted]:
    files = {
        name: Wanted((f"{name}.json", f"data/scienceqa/{name}.json"), _TEXTS) for name in ("problems", "pid_splits")
    }
    places = ("images/{}", "{}", "data/scienceqa/images/{}")
    images = {
        split: Wanted(
            tuple(place.format(split) for place in places), f"ScienceQA's {split}.zip, see its tools/download.sh", True
        )
        for split in SPLITS
    }
    return {**files, **images}


def read(source: Path) -> Extract:
    """The questions that have a picture.

    Args:
        source: The folder with ``problems.json``, ``pid_splits.json`` and the unpacked images.

    Raises:
        DataError: Something is missing, or a JSON file can't be used.
    """
    paths = locate(source, _wanted())
    files = read_all({name: (paths[name], dict) for name in ("problems", "pid_splits")})
    problems, splits = files["problems"], files["pid_splits"]
    extract = Extract()
    for split in SPLITS:
        ids = splits.get(split)
        if not isinstance(ids, list):
            extract.problems[split].append(f"{paths['pid_splits']}: '{split}' must list question ids, found {ids!r}")
            continue
        folder = paths[split].relative_to(source)

        def make(pid: Any, split: str = split, folder: Path = folder) -> dict[str, Any] | None:
            if str(pid) not in problems:
                raise Unusable(f"listed in {paths['pid_splits'].name} under '{split}', but not in problems.json")
            return _record(str(pid), mapping(problems[str(pid)]), folder, extract)

        items = [(f"question {pid}", pid) for pid in ids]
        extract.records[split], extract.problems[split] = convert(items, make, f"ScienceQA {split}")
    return extract


def _record(pid: str, problem: Mapping[str, Any], folder: Path, extract: Extract) -> dict[str, Any] | None:
    if problem.get("image") is None or problem["image"] == "":
        return None
    choices, answer = chosen(problem)
    kept = without_repeats(choices)
    if len(kept) < len(choices):
        extract.remark(_REPEATED, pid)
    hint = text(problem, "hint", needed=False)
    return {
        "image": (folder / pid / text(problem, "image")).as_posix(),
        "question": text(problem, "question"),
        "context": f"{hint} {text(problem, 'lecture', needed=False)}",
        "choices": kept,
        "answer": answer,
        "question_id": pid,
        "groups": {
            "subject": text(problem, "subject"),
            "modality": ["text", "image"] if hint else ["image"],
            "grade": _grades(text(problem, "grade")),
        },
    }


def _grades(grade: str) -> str:
    """The group that ScienceQA's own evaluation puts a grade in."""
    number = grade.removeprefix("grade")
    if not number.isdecimal() or not 1 <= int(number) <= 12:
        raise Unusable(f"'grade' must be grade1 to grade12, found {grade!r}")
    return "1-6" if int(number) <= 6 else "7-12"


#: Counted from the official pid_splits.json and the list of questions with a picture; 10,332 of 21,208 in all.
SCIENCEQA = Benchmark(
    "scienceqa", "ScienceQA", "questions with a picture", {"train": 6218, "val": 2097, "test": 2017}, read
)
