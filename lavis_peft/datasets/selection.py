"""Choosing among records: subsets, splits and the shuffled-pictures control. All draws are seeded."""

import random
from collections.abc import Sequence
from dataclasses import replace

from lavis_peft.datasets.records import Record
from lavis_peft.errors import ConfigError


def subset(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """At most so many records, drawn at random, in their old order."""
    if limit is None or limit >= len(records):
        return list(records)
    kept = sorted(random.Random(f"subset-{seed}").sample(range(len(records)), limit))
    return [records[index] for index in kept]


def split_answers(records: Sequence[Record]) -> list[Record]:
    """A record for each right answer of each record."""
    return [replace(record, answers=(answer,)) for record in records for answer in record.answers]


def carve(records: Sequence[Record], n_images: int, seed: int, where: str) -> tuple[list[Record], list[Record]]:
    """Set some pictures apart, with all their questions.

    Args:
        records: All records.
        n_images: How many pictures to set apart.
        seed: Of the draw.
        where: The option's name, for messages.

    Returns:
        The remaining records, and those set apart.

    Raises:
        ConfigError: No picture would remain.
    """
    images = sorted({record.image for record in records})
    if n_images >= len(images):
        raise ConfigError(f"{where}: {n_images} asked for, but the split has {len(images)} pictures and must keep one")
    apart = set(random.Random(f"carve-{seed}").sample(images, n_images))
    return [r for r in records if r.image not in apart], [r for r in records if r.image in apart]


def shuffle_images(records: Sequence[Record], seed: int, where: str) -> list[Record]:
    """Give every question another question's picture, never its own.

    Each picture is replaced by the next in a random circle of all pictures, so every picture stays as frequent as the
    number of questions about its predecessor, and none meets its own questions.

    Raises:
        ConfigError: All records share one picture.
    """
    circle = sorted({(record.image, record.image_id) for record in records})
    if len(circle) < 2:
        raise ConfigError(f"{where}: needs at least two different pictures in a split, found {len(circle)}")
    random.Random(f"images-{seed}").shuffle(circle)
    after = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    pictures = [after[record.image, record.image_id] for record in records]
    return [
        replace(record, image=image, image_id=image_id)
        for record, (image, image_id) in zip(records, pictures, strict=True)
    ]
