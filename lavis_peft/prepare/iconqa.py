"""IconQA (Lu et al. 2021): the multi-text-choice sub-task, as Kim et al. 2024 use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_peft.errors import DataError
from lavis_peft.prepare.benchmark import SPLITS, Benchmark, Extract
from lavis_peft.prepare.source import (
    Unusable,
    Wanted,
    chosen,
    convert,
    locate,
    mapping,
    read_all,
    read_json,
    text,
    without_repeats,
)

_TASK = "choose_txt"
_REPEATED = "a choice is listed twice; it is offered once"


def _places(end: str) -> tuple[str, ...]:
    return tuple(f"{start}{end}" for start in ("", "iconqa/", "iconqa_data/", "iconqa_data/iconqa/"))


@dataclass(frozen=True)
class _Lists:
    """The lists over all questions that lie beside the folders; empty where they are absent."""

    problems: Mapping[str, Any]
    skills: Mapping[str, Any]
    splits: Mapping[str, Any]


def _lists(source: Path) -> _Lists:
    names = {"problems": "problems.json", "skills": "pid2skills.json", "splits": "pid_splits.json"}
    found = {key: Wanted(_places(name), "").find(source) for key, name in names.items()}
    contents = read_all({key: (path, dict) for key, path in found.items() if path is not None})
    return _Lists(**{key: contents.get(key, {}) for key in names})


def read(source: Path) -> Extract:
    """The questions with texts to choose from.

    Args:
        source: The folder that ``iconqa_data.zip`` was unpacked in, or one inside it.

    Raises:
        DataError: Something is missing, or a JSON file can't be used.
    """
    wanted = {
        split: Wanted(_places(f"{split}/{_TASK}"), "iconqa_data.zip, see the repository lupantech/IconQA", True)
        for split in SPLITS
    }
    paths = locate(source, wanted)
    lists = _lists(source)
    extract = Extract()
    for split in SPLITS:
        present = [entry.name for entry in paths[split].iterdir() if entry.is_dir()]
        listed = lists.splits.get(f"{_TASK}_{split}", [])
        if not isinstance(listed, list):
            extract.problems[split].append(
                f"pid_splits.json: '{_TASK}_{split}' must list question ids, found {listed!r}"
            )
            continue
        # Questions that are listed and have no folder are reported by `make`: their data.json is missing.
        ids = sorted({*present, *map(str, listed)}, key=lambda pid: (len(pid), pid))

        def make(pid: str, folder: Path = paths[split]) -> dict[str, Any]:
            return _record(pid, folder, source, lists, extract)

        items = [(f"question {pid}", pid) for pid in ids]
        extract.records[split], extract.problems[split] = convert(items, make, f"IconQA {split}")
    return extract


def _record(pid: str, folder: Path, source: Path, lists: _Lists, extract: Extract) -> dict[str, Any]:
    try:
        data = read_json(folder / pid / "data.json", dict)
    except DataError as error:
        raise Unusable(str(error)) from None
    choices, answer = chosen(data)
    kept = without_repeats(choices)
    if len(kept) < len(choices):
        extract.remark(_REPEATED, pid)
    return {
        "image": ((folder / pid).relative_to(source) / "image.png").as_posix(),
        "question": text(data, "question"),
        "choices": kept,
        "answer": answer,
        "question_id": pid,
        **_groups(pid, data, lists),
    }


def _groups(pid: str, data: Mapping[str, Any], lists: _Lists) -> dict[str, Any]:
    known = {**mapping(lists.problems.get(pid, {})), **data}
    skills = lists.skills.get(pid, known.get("skills"))
    if isinstance(skills, str):
        skills = [skills]
    if skills is not None and not (isinstance(skills, list) and all(isinstance(name, str) for name in skills)):
        raise Unusable(f"its skills must be a list of texts, found {skills!r}")
    grade = text(known, "grade", needed=False)
    groups = {"skill": skills, "grade": grade}
    return {"groups": {name: found for name, found in groups.items() if found}}


#: https://iconqa.github.io, the table of sub-tasks.
ICONQA = Benchmark("iconqa", "IconQA", "multi-text-choice questions", {"train": 18946, "val": 6316, "test": 6316}, read)
