"""VizWiz-VQA (Gurari et al. 2018), the version of January 2020."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.prepare.benchmark import Benchmark, Extract
from lavis_peft.prepare.source import Unusable, Wanted, convert, locate, mapping, read_all, text, texts

_ANSWERS = 10
_TEST = (
    "split test is the official validation split, as split val is: the official test answers aren't public. A score "
    "on it is of the split that also chose the epoch, as in the research code"
)
_BLANK = "an answer is blank; it was left out"
_FEWER = f"other than {_ANSWERS} answers"


def read(source: Path) -> Extract:
    """The questions of the official training and validation splits; the latter serves as test too.

    Args:
        source: The folder that ``Annotations.zip``, ``train.zip`` and ``val.zip`` were unpacked in.

    Raises:
        DataError: Something is missing, or a JSON file can't be used.
    """
    splits = ("train", "val")
    files = {
        f"{split}.json": Wanted(
            tuple(f"{start}{split}.json" for start in ("Annotations/", "annotations/", "")),
            "VizWiz-VQA's Annotations.zip",
        )
        for split in splits
    }
    folders = {
        split: Wanted((split, f"images/{split}", f"Images/{split}"), f"VizWiz-VQA's {split}.zip", True)
        for split in splits
    }
    paths = locate(source, {**files, **folders})
    contents = read_all({split: (paths[f"{split}.json"], list) for split in splits})
    extract = Extract(notes=[_TEST])
    for split in splits:
        folder = paths[split].relative_to(source)

        def make(entry: Any, folder: Path = folder) -> dict[str, Any]:
            return _record(mapping(entry), folder, extract)

        items = [(f"{split}.json: record {number}", entry) for number, entry in enumerate(contents[split], start=1)]
        extract.records[split], extract.problems[split] = convert(items, make, f"VizWiz {split}")
    extract.records["test"], extract.problems["test"] = extract.records["val"], extract.problems["val"]
    return extract


def _record(entry: Mapping[str, Any], folder: Path, extract: Extract) -> dict[str, Any]:
    image = text(entry, "image")
    # Repeats stay: they count in the metric, and each is a target in training.
    answers = texts(entry, "answers", "answer")
    kept = [answer for answer in answers if answer.strip()]
    if not kept:
        raise Unusable(f"no answer among {answers!r}")
    if len(kept) < len(answers):
        extract.remark(_BLANK, image)
    elif len(answers) != _ANSWERS:
        extract.remark(_FEWER, image)
    kind = text(entry, "answer_type", needed=False)
    return {
        "image": (folder / image).as_posix(),
        "question": text(entry, "question"),
        "answer": kept,
        "question_id": image,
        **({"groups": {"answer_type": kind}} if kind else {}),
    }


#: https://vizwiz.org/tasks-and-datasets/vqa; the official test split's 8,000 questions have no public answers.
VIZWIZ = Benchmark("vizwiz", "VizWiz-VQA", "questions", {"train": 20523, "val": 4319, "test": 4319}, read)
