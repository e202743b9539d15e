"""Tasks whose answers are generated: how they ask a model, and what they check."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from lavis_peft.errors import DataError
from lavis_peft.tasks.base import DIVERGED, InstructTask
from lavis_peft.tasks.options import GenerationOptions
from lavis_peft.tasks.results import Row

_log = logging.getLogger(__name__)


def answers(model: Any, samples: Mapping[str, Any], options: GenerationOptions) -> list[str]:
    """Short answers to a batch's prompts, as the model's ``predict_answers`` gives them."""
    # Left out where it isn't set: its default is the model's own.
    penalty = {} if options.length_penalty is None else {"length_penalty": options.length_penalty}
    return model.predict_answers(
        {"image": samples["image"], "text_input": samples["text_input"]},
        num_beams=options.num_beams,
        inference_method="generate",
        max_len=options.max_len,
        min_len=options.min_len,
        **penalty,
    )


def captions(model: Any, samples: Mapping[str, Any], options: GenerationOptions) -> list[str]:
    """Texts to a batch's prompts, as the model's ``generate`` gives them."""
    penalty = {} if options.length_penalty is None else {"length_penalty": options.length_penalty}
    return model.generate(
        {"image": samples["image"], "prompt": samples["text_input"]},
        num_beams=options.num_beams,
        max_length=options.max_len,
        min_length=options.min_len,
        **penalty,
    )


class GeneratingTask(InstructTask):
    """Evaluates what the model writes."""

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Note which questions must be answered; see that the model's weights are numbers.

        Raises:
            DataError: They aren't.
        """
        super().before_evaluation(model, dataset, **kwargs)
        check_finite(model)

    def texts(self, model: Any, samples: Mapping[str, Any]) -> list[str]:
        """What the model writes for a batch, a text each."""
        raise NotImplementedError

    def row(self, samples: Mapping[str, Any], position: int, text: str) -> Row:
        """What a text leaves in the predictions."""
        raise NotImplementedError

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """Answer a batch.

        Args:
            model: Generates, with LAVIS's arguments.
            samples: A collated batch.

        Returns:
            One row a question.

        Raises:
            DataError: The model wrote more or fewer texts than there are questions.
        """
        found = self.texts(model, samples)
        if len(found) != len(samples["text_input"]):
            raise DataError(f"the model wrote {len(found)} texts for {len(samples['text_input'])} questions")
        return [self.row(samples, position, text.strip()) for position, text in enumerate(found)]


def count_empty(rows: list[Row]) -> int:
    """How many questions the model wrote nothing for; says so where it is all of them."""
    empty = sum(not row["prediction"] for row in rows)
    if rows and empty == len(rows):
        _log.warning("the model wrote nothing at all: all %d predictions are empty", empty)
    return empty


def check_finite(model: Any) -> None:
    """See that a model's trained weights are numbers: generating from others gives texts, and no error.

    Raises:
        DataError: Names the first that isn't.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise DataError(f"the model's {name} isn't all numbers; {DIVERGED}")
