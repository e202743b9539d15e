"""In which order an epoch's samples come, and which of them make a batch."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from lavis_peft.errors import ConfigError

#: Batches of a stretch; transformers' number.
STRETCH = 50


def text_lengths(dataset: Any) -> list[int]:
    """How long each sample's texts are, without its picture being opened.

    Args:
        dataset: A map-style dataset, or several as one, whose `text_lengths` says it.

    Raises:
        ConfigError: One of them can't say.
    """
    parts = getattr(dataset, "datasets", [dataset])
    silent = sorted({type(part).__name__ for part in parts if not hasattr(part, "text_lengths")})
    if silent:
        raise ConfigError(
            f"run.group_by_length: needs datasets of the plugin's, found {', '.join(silent)}, which can't say how long "
            "a sample's texts are without opening its picture; use false"
        )
    return [length for part in parts for length in part.text_lengths()]


def grouped(order: Sequence[int], lengths: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
    """An order whose batches hold samples of about the same length, so that little of a batch is padding.

    As transformers' Trainer does with the key of the same name: an epoch's shuffled order is cut into stretches of many
    batches, and within each the samples are sorted by length. Here the batches of a stretch are then shuffled, too, so
    that lengths don't rise and fall in step with the learning rate.

    What is left over by whole batches stays at the end, so that the loader drops what it would have dropped.

    Args:
        order: An epoch's shuffled samples.
        lengths: Of every sample.
        size: Samples of an iteration, those of all processes together.
        generator: Shuffles the batches.
    """
    whole = len(order) - len(order) % size
    result: list[int] = []
    for start in range(0, whole, STRETCH * size):
        stretch = sorted(order[start : min(start + STRETCH * size, whole)], key=lambda sample: lengths[sample])
        for number in torch.randperm(len(stretch) // size, generator=generator).tolist():
            result += stretch[number * size : (number + 1) * size]
    return [*result, *order[whole:]]


class Window(DistributedSampler[Any]):
    """A process's shuffled share of the data, or the batches of it that a window shows.

    Args:
        batch_size: Samples of a batch.
        lengths: Of every sample's texts, to have batches of about the same length; None for any.
        dataset: The whole.
        seed: Of the order.
        more: As DistributedSampler's.
    """

    def __init__(
        self, batch_size: int, lengths: Sequence[int] | None, dataset: Dataset[Any], seed: int, **more: Any
    ) -> None:
        super().__init__(dataset, seed=seed, **more)
        self._batch_size = batch_size
        self._lengths = lengths
        self._draws_by = seed
        self._shown: range | None = None

    def show(self, number: int, seed: int, batches: range | None) -> None:
        """Choose a pass over the data.

        Args:
            number: Counted from 0.
            seed: What its samples draw by; the order's is given once.
            batches: Those of its batches to give; None for all.
        """
        self.set_epoch(number)
        self._draws_by = seed
        self._shown = batches

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Places of samples: pass, seed and index."""
        order = super().__iter__() if self._lengths is None else self._grouped(self._lengths)
        if self._shown is not None:
            order = islice(order, self._shown.start * self._batch_size, self._shown.stop * self._batch_size)
        number, seed = self.epoch, self._draws_by
        return ((number, seed, index) for index in order)

    def _grouped(self, lengths: Sequence[int]) -> Iterator[int]:
        # All processes' order, as DistributedSampler makes it: shuffled, its beginning repeated to fill the last share.
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        order = list(islice(cycle(order), self.total_size))
        order = grouped(order, lengths, self._batch_size * self.num_replicas, generator)
        return iter(order[self.rank :: self.num_replicas])
