"""The loaders: what each process and epoch sees. Needs no LAVIS on a CPU."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.loaders import eval_loader, train_loader
from lavis_peft.runners.seeding import seed_everything


class Numbers(Dataset[Any]):
    """Each sample is its number and a draw from every generator."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epochs: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random() + np.random.rand() + float(torch.rand(()))

    def set_epoch(self, epoch: int, seed: int) -> None:
        self.epochs.append((epoch, seed))

    def collater(self, samples: list[Any]) -> list[Any]:
        return samples


def epoch_of(loader: Any, epoch: int, seed: int = 1) -> list[Any]:
    loader.set_epoch(epoch, seed)
    return [sample for batch in loader for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_whatever_came_before_it(workers: int) -> None:
    first = train_loader(Numbers(8), 2, workers, seed=1, on_gpu=False)
    epochs = [epoch_of(first, epoch) for epoch in range(3)]
    torch.rand(5)
    resumed = train_loader(Numbers(8), 2, workers, seed=1, on_gpu=False)
    assert epoch_of(resumed, 2) == epochs[2]
    assert [index for index, _ in epochs[0]] != [index for index, _ in epochs[1]]
    assert sorted(index for index, _ in epochs[2]) == list(range(8))


def test_lavis_loop_makes_a_new_iterator_each_epoch() -> None:
    assert not hasattr(train_loader(Numbers(4), 2, 0, seed=1, on_gpu=False), "__next__")


def test_an_incomplete_batch_is_dropped() -> None:
    loader = train_loader(Numbers(7), 2, 0, seed=1, on_gpu=False)
    assert len(loader) == 3
    assert len(epoch_of(loader, 0)) == 6


def test_datasets_hear_of_the_epoch() -> None:
    dataset = Numbers(4)
    epoch_of(train_loader(dataset, 2, 0, seed=5, on_gpu=False), 3, seed=5)
    assert dataset.epochs == [(3, 5)]


def test_too_few_samples() -> None:
    with pytest.raises(ConfigError, match=r"batch_size_train is 8, but the training set has only 7 samples"):
        train_loader(Numbers(7), 8, 0, seed=1, on_gpu=False)


def test_a_stream_has_no_epochs() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ConfigError, match="runner_iter"):
        train_loader(Stream(), 2, 0, seed=1, on_gpu=False)


@pytest.mark.parametrize(("size", "processes"), [(7, 2), (7, 3), (4, 4)])
def test_shares_of_the_processes_make_the_whole(size: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    seen: list[int] = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = eval_loader(Numbers(size), 2, 0, shared=True, on_gpu=False)
        seen += [index for batch in loader for index, _ in batch]
    assert sorted(seen) == list(range(size))


def test_a_process_without_a_share_still_has_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    loader = eval_loader(Numbers(2), 2, 0, shared=True, on_gpu=False)
    assert [index for batch in loader for index, _ in batch] == [0]


def test_evaluation_of_everything_on_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    loader = eval_loader(Numbers(5), 2, 0, shared=False, on_gpu=False)
    assert [index for batch in loader for index, _ in batch] == [0, 1, 2, 3, 4]


def test_ranks_draw_differently_in_the_same_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seed_everything(3, 0)
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert draws[0] == draws[2]
    assert not set(draws[0]) & set(draws[1])
