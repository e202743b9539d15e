"""What a benchmark is here, and what reading its download gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_peft.checks import shortened

SPLITS = ("train", "val", "test")


def questions(count: int) -> str:
    """``1 question``, ``2 questions``."""
    return "1 question" if count == 1 else f"{count:,} questions"


@dataclass
class Extract:
    """What was found in a download.

    Args:
        records: `instruct_json` records by split; their image paths count from the download's folder.
        problems: Questions that can't be used, one sentence each, by split.
        remarks: What is worth knowing: from a sentence to the questions that it is about.
        notes: Sentences that are about no question in particular.
    """

    records: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    problems: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    remarks: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def remark(self, sentence: str, question_id: str) -> None:
        """Note a sentence about a question."""
        self.remarks.setdefault(sentence, []).append(question_id)

    def remarked(self) -> list[str]:
        """Every remark, with how many questions it is about and the first of them."""
        return [
            *self.notes,
            *(f"{questions(len(ids))} ({shortened(ids, 3)}): {text}" for text, ids in self.remarks.items()),
        ]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its official download.

    Args:
        name: Its name on the command line; its dataset is ``{name}_peft``.
        title: Its name in prose.
        counts: What ``published`` counts.
        published: The published size of each split that is written.
        read: Reads the download's folder. It raises DataError where files are missing or no JSON.
    """

    name: str
    title: str
    counts: str
    published: Mapping[str, int]
    read: Callable[[Path], Extract]

    @property
    def dataset(self) -> str:
        """The registered builder's name."""
        return f"{self.name}_peft"
