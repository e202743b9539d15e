"""The loaders: what each process and epoch sees. Needs no LAVIS on a CPU."""

import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed, loaders
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


def test_workers_that_stay_draw_by_the_epoch_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where new processes aren't forked; a worker then has a dataset of an epoch long past."""

    class Placed(Numbers):
        def __getitem__(self, index: int) -> Any:
            return index, self.epochs[-1], torch.utils.data.get_worker_info() and os.getpid()

    expected = train_loader(Placed(12), 2, 0, seed=1, on_gpu=False)
    monkeypatch.setattr(loaders, "_workers_stay", lambda: True)
    staying = train_loader(Placed(12), 2, 2, seed=1, on_gpu=False)
    processes = set()
    for epoch in (0, 1, 3):
        found = epoch_of(staying, epoch)
        assert [sample[:2] for sample in found] == [sample[:2] for sample in epoch_of(expected, epoch)]
        assert {place for _, place, _ in found} == {(epoch, 1)}
        processes |= {process for *_, process in found}
    assert len(processes) == 2
    staying.set_epoch(1, 1, first=4)  # a pass that was left in its middle, and one that begins there
    next(iter(staying))
    staying.set_epoch(2, 1, first=4)
    expected.set_epoch(2, 1, first=4)
    assert [[sample[:2] for sample in batch] for batch in staying] == [
        [sample[:2] for sample in batch] for batch in expected
    ]


@pytest.mark.parametrize(("method", "stay"), [("fork", False), ("spawn", True), ("forkserver", True)])
def test_workers_stay_where_each_would_begin_as_a_new_python(
    method: str, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.multiprocessing, "get_start_method", lambda: method)
    made = [train_loader(Numbers(4), 2, 1, seed=1, on_gpu=False).loader, eval_loader(Numbers(4), 2, 1, True, False)]
    assert [loader.persistent_workers for loader in made] == [stay, stay]
    assert not train_loader(Numbers(4), 2, 0, seed=1, on_gpu=False).loader.persistent_workers


@pytest.mark.parametrize("on_gpu", [True, False])
def test_memory_is_pinned_for_a_gpu_only(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_prefetched", lambda loader, _: loader)
    made = [train_loader(Numbers(4), 2, 0, 1, on_gpu).loader, eval_loader(Numbers(4), 2, 0, True, on_gpu)]
    assert [loader.pin_memory for loader in made] == [on_gpu, on_gpu]
