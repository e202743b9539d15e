"""The task `multiple_choice_vqa`: rank each question's own choices, at any batch size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lavis_peft.errors import DataError
from lavis_peft.tasks.base import DIVERGED, InstructTask
from lavis_peft.tasks.generation import answers
from lavis_peft.tasks.options import TaskOptions
from lavis_peft.tasks.results import Row, metrics, same_text
from lavis_peft.tasks.rows import answers_of, pick, row


class MultipleChoiceVqaTask(InstructTask):
    """Evaluates by the likelihood of each of a question's own choices.

    Args:
        options: What to do with open questions, and how to generate.
    """

    options_type = TaskOptions

    def check_records(self, name: str, split: str, records: Sequence[Any]) -> None:
        """Refuse open questions, unless `run.open_ended` says what to do with them."""
        opened = [record for record in records if not record.choices] if self.options.open_ended == "error" else []
        if opened:
            raise DataError(
                f"{opened[0].where}: no 'choices', so the task multiple_choice_vqa can't rank them "
                f"({len(opened)} of the {len(records)} questions of split {split}); give each record `choices`, "
                f"set datasets.{name}.choices, or set run.open_ended: generate"
            )

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """Answer a batch, each question among its own candidates.

        Args:
            model: Has ``score_candidates(image, prompts, candidates)``; lower scores are better.
            samples: A collated batch. ``candidates``, the choices as the model was trained to write them, may be
                absent; then ``choices`` are ranked as they are.

        Returns:
            One row a question: id, type, prediction, answers, whether it is correct, choices and their scores.

        Raises:
            DataError: A question without choices, unless ``run.open_ended: generate``; scores that aren't numbers.
        """
        choices = samples["choices"]
        closed = [index for index, found in enumerate(choices) if found]
        opened = [index for index, found in enumerate(choices) if not found]
        if opened and self.options.open_ended == "error":
            raise DataError(f"question {samples['question_id'][opened[0]]!r} has no choices; see run.open_ended")
        rows = self._rank(model, samples, closed) | self._generate(model, samples, opened)
        return [rows[index] for index in range(len(choices))]

    def _rank(self, model: Any, samples: Mapping[str, Any], picked: Sequence[int]) -> dict[int, Row]:
        if not picked:
            return {}
        part = pick(samples, picked)
        candidates = part.get("candidates", part["choices"])
        scores = model.score_candidates(part["image"], part["text_input"], candidates)
        # One copy from the GPU for the batch, not one a question.
        flat = torch.cat(list(scores)).cpu().split([len(own) for own in candidates])
        rows = {}
        for position, index in enumerate(picked):
            row_scores = flat[position].tolist()
            if not all(math.isfinite(score) for score in row_scores):
                question = part["question_id"][position]
                raise DataError(f"question {question!r}: the model's scores aren't numbers; {DIVERGED}")
            best = min(range(len(row_scores)), key=row_scores.__getitem__)
            prediction = part["choices"][position][best]
            correct = prediction in answers_of(part, position)
            rows[index] = _row(part, position, prediction, correct, row_scores)
        return rows

    def _generate(self, model: Any, samples: Mapping[str, Any], picked: Sequence[int]) -> dict[int, Row]:
        if not picked:
            return {}
        part = pick(samples, picked)
        return {
            index: _row(part, position, text, same_text(text, answers_of(part, position)), [])
            for position, (index, text) in enumerate(zip(picked, answers(model, part, self.options), strict=True))
        }

    def score(self, rows: list[Row]) -> dict[str, Any]:
        """Accuracy in percent, as `results.metrics` gives it."""
        return metrics(rows)

    def headline(self, found: Mapping[str, Any]) -> str:
        """The accuracy."""
        return f"accuracy {found['accuracy']:.2f} %"


def _row(samples: Mapping[str, Any], position: int, prediction: str, correct: bool, scores: Sequence[float]) -> Row:
    return {
        **row(samples, position, ("choices",)),
        "prediction": prediction,
        "correct": correct,
        "scores": list(scores),
    }
