"""The task `vqa_accuracy_peft`: generate answers, and score them against those of several people, as VizWiz does."""

from collections.abc import Mapping, Sequence
from typing import Any

from lavis_peft.errors import DataError
from lavis_peft.metrics.vqa import vqa_accuracy
from lavis_peft.tasks.generation import GeneratingTask, answers, count_empty
from lavis_peft.tasks.results import Row, metrics
from lavis_peft.tasks.rows import answers_of, row

#: With fewer answers, not even the answer that everybody gave is wholly right.
_FEWEST = 4


class VqaAccuracyTask(GeneratingTask):
    """Evaluates by the VQA accuracy of generated answers."""

    def check_records(self, name: str, split: str, records: Sequence[Any]) -> None:
        """Refuse questions that too few people answered."""
        few = [record for record in records if len(record.answers) < _FEWEST]
        if few:
            raise DataError(
                f"{few[0].where}: 'answer' has {len(few[0].answers)}, but the VQA accuracy compares the answers of "
                f"several people and needs at least {_FEWEST} ({len(few)} of the {len(records)} questions of split "
                f"{split} of datasets.{name}); VizWiz has 10, repeats included"
            )

    def texts(self, model: Any, samples: Mapping[str, Any]) -> list[str]:
        """Short answers."""
        return answers(model, samples, self.options)

    def row(self, samples: Mapping[str, Any], position: int, text: str) -> Row:
        """Question, people's answers, prediction, and how right it is: 0 to 1."""
        given = answers_of(samples, position)
        return {
            **row(samples, position, ("answers",)),
            "prediction": text,
            "accuracy": vqa_accuracy(text, given),
            "accuracy_normalized": vqa_accuracy(text, given, normalize_answers=True),
        }

    def score(self, rows: list[Row]) -> dict[str, Any]:
        """VQA accuracy in percent, as VizWiz's code computes it, overall and by type and group.

        Besides, ``accuracy_normalized``: with the people's answers in normal form too, as VQA's documentation says; and
        how many predictions are empty.
        """
        normalized = metrics(rows, "accuracy_normalized")["accuracy"]
        return {**metrics(rows, "accuracy"), "accuracy_normalized": normalized, "empty": count_empty(rows)}

    def headline(self, found: Mapping[str, Any]) -> str:
        """The accuracy."""
        return f"VQA accuracy {found['accuracy']:.2f} %"
