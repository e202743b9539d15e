"""Samples of a batch, and the row that a question leaves in a split's predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lavis_peft.tasks.results import Row

_KEPT = ("question_id", "question_type", "image_id", "answer")


def to_device(samples: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors where the model is."""
    return {
        key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in samples.items()
    }


def pick(samples: Mapping[str, Any], picked: Sequence[int]) -> dict[str, Any]:
    """The chosen samples of a batch."""
    picked = list(picked)
    lists = {key: [value[index] for index in picked] for key, value in samples.items() if isinstance(value, list)}
    return {**lists, "image": samples["image"][picked]}


def answers_of(samples: Mapping[str, Any], position: int) -> list[str]:
    """All right answers of a question."""
    return samples["answers"][position] if "answers" in samples else [samples["answer"][position]]


def row(samples: Mapping[str, Any], position: int, keys: Sequence[str] = ()) -> Row:
    """What identifies a question, with its groups if it has any.

    Args:
        samples: A collated batch.
        position: The question's place in it.
        keys: Further keys of the batch that the row keeps, where the batch has them.
    """
    kept = {key: samples[key][position] for key in (*_KEPT, *keys) if key in samples}
    groups = samples["groups"][position] if "groups" in samples else {}
    return {**kept, **({"groups": {name: list(labels) for name, labels in groups.items()}} if groups else {})}
