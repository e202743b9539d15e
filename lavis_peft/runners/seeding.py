"""Randomness by construction: what is drawn follows from the seed and the place in the run, so no state is stored."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lavis_peft.datasets.dataset import drawing_from
from lavis_peft.runners import distributed

#: In place of an iteration: before an evaluation, which may draw numbers too.
EVALUATION = 2**32 - 1


def seed_everything(seed: int, epoch: int, iteration: int | None = None) -> int:
    """Seed every generator of this process from (seed, rank, epoch) or (seed, rank, epoch, iteration).

    A resumed run gets the same augmentation and dropout as one that was never interrupted, without stored states.

    Args:
        seed: ``run.seed``.
        epoch: Counted from 0.
        iteration: Counted from 0 in the epoch.

    Returns:
        The seed that was used.
    """
    place = (seed, distributed.rank(), epoch) if iteration is None else (seed, distributed.rank(), epoch, iteration)
    words = np.random.SeedSequence(place).generate_state(2, np.uint32)
    derived = int(words[0]) << 31 ^ int(words[1])
    random.seed(derived)
    np.random.seed(int(words[0]))
    torch.manual_seed(derived)
    return derived


class PlacedSamples(Dataset[Any]):
    """A dataset that is asked by epoch, seed and index, so that a data worker from an earlier epoch draws right, too.

    Args:
        dataset: A map-style dataset; what of it has `set_epoch` is told, itself or the parts it is joined of.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._told: tuple[int, int] | None = None

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Choose the epoch whose draws follow, in this process."""
        if self._told == (epoch, seed):
            return
        for part in (self.dataset, *getattr(self.dataset, "datasets", ())):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch, seed=seed)
        self._told = epoch, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int, int]) -> Any:
        epoch, seed, index = place
        self.set_epoch(epoch, seed)
        return self.dataset[index]


class SeededSamples(Dataset[Any]):
    """A dataset that knows nothing of epochs, each of whose samples draws from (seed, epoch, index) alone.

    LAVIS's datasets draw from the process's generators. In a data worker these go on from batch to batch, so that a run
    resumed within an epoch would get other pictures than the one that wasn't interrupted.

    Args:
        dataset: A map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        #: Where the loader finds the parts that know of epochs.
        self.datasets = getattr(dataset, "datasets", [dataset])
        self._place = "0-0"

    @classmethod
    def of(cls, dataset: Any) -> Any:
        """The dataset itself where all its parts know of epochs, else this around it."""
        parts = getattr(dataset, "datasets", [dataset])
        return dataset if all(hasattr(part, "set_epoch") for part in parts) else cls(dataset)

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Choose the epoch whose draws follow."""
        self._place = f"{seed}-{epoch}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with drawing_from(f"sample-{self._place}-{index}"):
            return self.dataset[index]
