"""Batches of about the same length: the same samples as without, in every epoch, process and resumed run."""

import random
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.loaders import IterationLoader, train_loader
from lavis_peft.runners.order import STRETCH, grouped, text_lengths


class Texts(Dataset[Any]):
    """Samples with lengths as prompts have them: most are short, some have a lecture as their context."""

    def __init__(self, size: int, first: int = 0) -> None:
        draws = random.Random(size)
        self.lengths = [int(draws.lognormvariate(4.5, 0.8)) + 10 for _ in range(size)]
        self.first = first

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> int:
        return self.first + index

    def text_lengths(self) -> list[int]:
        return self.lengths

    def set_epoch(self, epoch: int, seed: int) -> None:
        pass

    def collater(self, samples: list[Any]) -> list[Any]:
        return samples


Batches = list[list[int]]


def batches(dataset: Any, epoch: int = 0, size: int = 8, seed: int = 1, first: int = 0, **more: Any) -> Batches:
    loader = train_loader(dataset, size, 0, seed=seed, on_gpu=False, **{"group_by_length": True, **more})
    loader.set_epoch(epoch, seed, first)
    return list(loader)


def padding(found: Batches, lengths: list[int]) -> tuple[int, int]:
    """Padded places, and all of them."""
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in found)
    return padded - sum(lengths[i] for batch in found for i in batch), padded


def samples(found: Batches) -> list[int]:
    return sorted(sample for batch in found for sample in batch)


def test_padding_falls() -> None:
    """With batches of 16, from two thirds of all places to less than a tenth."""
    dataset = Texts(4000)
    (plain, all_plain), (less, all_less) = (
        padding(batches(dataset, size=16, group_by_length=on), dataset.lengths) for on in (False, True)
    )
    assert plain / all_plain > 0.6
    assert less / all_less < 0.1
    assert all_less < 0.4 * all_plain


@pytest.mark.parametrize("size", [64, 67, 8 * STRETCH, 8 * STRETCH + 3, 3 * 8 * STRETCH + 20])
def test_an_epoch_has_the_samples_it_had(size: int) -> None:
    dataset = Texts(size)
    for epoch in range(3):
        plain, found = (batches(dataset, epoch, group_by_length=on) for on in (False, True))
        assert samples(found) == samples(plain)
        assert [len(batch) for batch in found] == [len(batch) for batch in plain]
        assert found != plain


def test_an_order_follows_from_seed_and_epoch() -> None:
    dataset = Texts(500)
    assert batches(dataset, 1) == batches(dataset, 1)
    assert len({str(batches(dataset, epoch, seed=seed)) for epoch in range(3) for seed in (1, 5)}) == 6
    assert [sorted(batch) for batch in batches(dataset, 0)] != [sorted(batch) for batch in batches(dataset, 1)]


def test_lengths_do_not_rise_or_fall_through_a_stretch() -> None:
    dataset = Texts(8 * STRETCH)
    longest = [max(dataset.lengths[i] for i in batch) for batch in batches(dataset)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    turns = sum((a < b) != (b < c) for a, b, c in zip(longest, longest[1:], longest[2:], strict=False))
    assert turns > STRETCH / 3


@pytest.mark.parametrize(("size", "processes"), [(400, 2), (401, 2), (1000, 3), (17, 2)])
def test_processes_get_equally_many_batches_of_the_same_length(
    size: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Texts(size)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares, plain = [], []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(batches(dataset, 2))
        plain += batches(dataset, 2, group_by_length=False)
    assert len({len(share) for share in shares}) == 1
    together = [batch for share in shares for batch in share]
    assert samples(together) == samples(plain)
    whole = grouped(list(range(size)), dataset.lengths, 8 * processes, torch.Generator())
    ideal, _ = padding([whole[at : at + 8] for at in range(0, len(whole), 8)], dataset.lengths)
    found, everything = padding(together, dataset.lengths)
    assert found < max(2 * ideal, 0.35 * everything)


def test_an_epoch_entered_in_its_middle() -> None:
    dataset = Texts(500)
    assert batches(dataset, 1, first=7) == batches(dataset, 1)[7:]


def test_iterations_go_through_the_same_passes() -> None:
    dataset, expected = Texts(100), []
    for number in range(3):
        expected += batches(dataset, number)
    loader = IterationLoader(train_loader(dataset, 8, 0, seed=1, on_gpu=False, group_by_length=True), 15)
    found = []
    for epoch in range(2):
        loader.set_epoch(epoch, 1)
        found += list(loader)
    assert found == expected[:30]
    loader.set_epoch(1, 1, first=4)
    assert list(loader) == expected[19:30]


def test_several_datasets_as_one() -> None:
    whole = ConcatDataset([Texts(60), Texts(300, first=60)])
    whole.collater = lambda given: given
    lengths = Texts(60).lengths + Texts(300).lengths
    assert text_lengths(whole) == lengths
    found = batches(whole)
    assert samples(found) == list(range(360))
    assert padding(found, lengths)[0] < 0.3 * padding(batches(whole, group_by_length=False), lengths)[0]


def test_a_dataset_that_cannot_say_is_refused() -> None:
    class Foreign(Dataset[Any]):
        def __len__(self) -> int:
            return 20

    with pytest.raises(ConfigError, match=r"run\.group_by_length: needs datasets of the plugin's, found Foreign"):
        batches(Foreign())
