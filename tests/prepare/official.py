"""Small downloads in the benchmarks' official layouts. Tests get them by the fixture `official_download`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

SIZES = {"train": 6, "val": 3, "test": 3}
COLORS = ("red", "blue", "green")


def picture(path: Path, number: int) -> None:
    """A 64×64 picture of one colour, in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), COLORS[number % 3]).save(path)


def dump(path: Path, content: Any) -> None:
    """A JSON file, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def scienceqa(root: Path, sizes: Mapping[str, int]) -> None:
    """Besides the questions with a picture, one in each split has none."""
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {"minitrain": []}
    for split, count in sizes.items():
        splits[split] = []
        for number in range(count + 1):
            pid = str(len(problems) + 1)
            splits[split].append(pid)
            problems[pid] = {
                "question": "What color is the picture?",
                "choices": list(COLORS),
                "answer": number % 3,
                "hint": "Look at the picture." if number % 2 else "",
                "image": "image.png" if number < count else None,
                "task": "closed choice",
                "grade": f"grade{1 + number * 3 % 12}",
                "subject": ("natural science", "language science", "social science")[number % 3],
                "lecture": "A lecture; on *colors*.",
                "split": split,
            }
            if number < count:
                picture(root / "images" / split / pid / "image.png", number)
    dump(root / "problems.json", problems)
    dump(root / "pid_splits.json", splits)


def iconqa(root: Path, sizes: Mapping[str, int]) -> None:
    """As `iconqa_data.zip` unpacks; another sub-task's folder is there too."""
    base, skills, pid = root / "iconqa_data", {}, 0
    for split, count in sizes.items():
        for number in range(count):
            pid += 1
            folder = base / "iconqa" / split / "choose_txt" / str(pid)
            picture(folder / "image.png", number)
            data = {"question": "What color is it?", "choices": list(COLORS), "answer": number % 3}
            dump(folder / "data.json", {**data, "ques_type": "choose_txt", "grade": "grade1", "label": "S2"})
            skills[str(pid)] = ["counting", "scene"] if number % 2 else ["comparing"]
        dump(base / "iconqa" / split / "fill_in_blank" / "900" / "data.json", {"question": "How many?", "answer": "2"})
    dump(base / "pid2skills.json", skills)


def vizwiz(root: Path, sizes: Mapping[str, int]) -> None:
    """Annotations of all three splits; those of the test split have no answers."""
    for split, count in sizes.items():
        entries = []
        for number in range(count):
            name = f"VizWiz_{split}_{number:08d}.jpg"
            picture(root / split / name, number)
            said = [COLORS[number % 3]] * 7 + ["unanswerable"] * 3
            answers = [{"answer": answer, "answer_confidence": "yes"} for answer in said]
            found = {"answers": answers, "answer_type": "other", "answerable": 1} if split != "test" else {}
            entries.append({"image": name, "question": "What color is this?", **found})
        dump(root / "Annotations" / f"{split}.json", entries)


def flickr30k(root: Path, sizes: Mapping[str, int]) -> None:
    """Karpathy's JSON in a folder of its own."""
    images = []
    for split, count in sizes.items():
        for _ in range(count):
            number = len(images)
            name = f"{1000092795 + number}.jpg"
            picture(root / "flickr30k-images" / name, number)
            captions = [f"A {COLORS[number % 3]} picture; number {index} !" for index in range(5)]
            sentences = [
                {"tokens": raw.lower().split(), "raw": raw, "imgid": number, "sentid": 5 * number + index}
                for index, raw in enumerate(captions)
            ]
            images.append({"sentids": [], "imgid": number, "sentences": sentences, "split": split, "filename": name})
    dump(root / "karpathy" / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


WRITERS: dict[str, Callable[[Path, Mapping[str, int]], None]] = {
    "scienceqa": scienceqa,
    "iconqa": iconqa,
    "vizwiz": vizwiz,
    "flickr30k": flickr30k,
}
