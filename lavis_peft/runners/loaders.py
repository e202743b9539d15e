"""Data loaders that need no GPU and whose order and augmentation follow from (seed, rank, epoch, iteration)."""

import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lavis_peft.datasets.bad_samples import leave_out
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.order import Window, text_lengths
from lavis_peft.runners.seeding import PlacedSamples, SeededSamples, seed_everything
from lavis_peft.runners.signals import ignore_in_worker


class EpochLoader:
    """A training loader that starts afresh each epoch, in an order fixed by (seed, epoch).

    LAVIS keeps one endless iterator instead, sleeps two seconds whenever it wraps, and reshuffles only where there are
    several processes. It has no ``__next__`` on purpose: LAVIS's loop then calls ``iter`` once per epoch.

    Args:
        loader: A loader over a :class:`DistributedSampler`.
        on_gpu: Copy the next batch to the GPU while the current one is computed.
    """

    def __init__(self, loader: DataLoader[Any], on_gpu: bool) -> None:
        self.loader = loader
        self._on_gpu = on_gpu

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(_prefetched(self.loader, self._on_gpu))

    def set_epoch(self, epoch: int, seed: int, first: int = 0) -> None:
        """Fix this epoch's order and every generator that it draws from.

        Args:
            epoch: Counted from 0.
            seed: ``run.seed``.
            first: The first iteration to give; the ones before it aren't loaded.
        """
        self.start_pass(epoch, seed, range(first, len(self)) if first else None)
        self.loader.generator.manual_seed(seed_everything(seed, epoch))

    def start_pass(self, number: int, seed: int, batches: range | None = None) -> None:
        """Fix the order of one pass over the data.

        Args:
            number: Counted from 0.
            seed: ``run.seed``.
            batches: The batches of the pass to give; None for all.
        """
        self.loader.sampler.show(number, seed, batches)
        self.loader.dataset.set_epoch(number, seed)


class IterationLoader:
    """A training loader of a fixed number of iterations, which goes on where the last one ended.

    Like `EpochLoader`, it depends on nothing but the seed and the epoch: the place in the data that an epoch starts at
    follows from its number.

    Args:
        loader: A loader of one pass over the data.
        iterations: Per epoch.
    """

    def __init__(self, loader: EpochLoader, iterations: int) -> None:
        self.loader = loader.loader
        self._passes = loader
        self._iterations = iterations
        self._first = self._end = 0

    def __len__(self) -> int:
        return self._iterations

    def set_epoch(self, epoch: int, seed: int, first: int = 0) -> None:
        """Fix this epoch's place in the data and every generator that it draws from.

        Args:
            epoch: Counted from 0.
            seed: ``run.seed``.
            first: The epoch's first iteration to give; the ones before it aren't loaded.
        """
        self._seed = seed
        self._first, self._end = epoch * self._iterations + first, (epoch + 1) * self._iterations
        self._passes.set_epoch(epoch, seed)

    def __iter__(self) -> Iterator[Any]:
        at, end, length = self._first, self._end, len(self._passes)
        while at < end:
            number, done = divmod(at, length)
            count = min(length - done, end - at)
            self._passes.start_pass(number, self._seed, range(done, done + count))
            yield from self._passes
            at += count


def _workers_stay() -> bool:
    """Whether data workers are kept from epoch to epoch.

    A forked one is there in a tenth of a second; one that begins as a new Python imports torch first, for many seconds.
    """
    return multiprocessing.get_start_method() != "fork"


def _prefetched(loader: DataLoader[Any], on_gpu: bool) -> Any:
    if not on_gpu:
        return loader  # LAVIS's PrefetchLoader makes a CUDA stream
    from lavis.datasets.datasets.dataloader_utils import PrefetchLoader

    return PrefetchLoader(loader)


def train_loader(
    dataset: Dataset[Any],
    batch_size: int,
    num_workers: int,
    seed: int,
    on_gpu: bool,
    on_bad_sample: str = "error",
    group_by_length: bool = False,
) -> EpochLoader:
    """A shuffled loader over this process's share; an incomplete last batch is dropped, as LAVIS does.

    Args:
        dataset: A map-style dataset; its `collater` is used if it has one.
        batch_size: Samples per process.
        num_workers: Loading processes.
        seed: ``run.seed``.
        on_gpu: Pin memory and prefetch.
        on_bad_sample: What becomes of a sample that can't be read: error, or skip.
        group_by_length: Batches of samples whose texts are about as long.

    Raises:
        ConfigError: A streaming dataset, fewer samples than one batch, or a dataset that can't skip or be grouped.
    """
    if isinstance(dataset, (tuple, IterableDataset)):
        raise ConfigError("the training set is a stream (WebDataset), which has no epochs; use run.runner: runner_iter")
    share = {"num_replicas": distributed.world_size(), "rank": distributed.rank()}
    lengths = text_lengths(dataset) if group_by_length else None
    sampler = Window(batch_size, lengths, dataset, seed, **share)
    if len(sampler) < batch_size:
        raise ConfigError(
            f"run.batch_size_train is {batch_size}, but the training set has only {len(sampler)} samples per process"
        )
    loader = DataLoader(
        PlacedSamples(SeededSamples.of(dataset)),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=leave_out(dataset) if on_bad_sample == "skip" else getattr(dataset, "collater", None),
        pin_memory=on_gpu,
        drop_last=True,
        generator=torch.Generator(),
        worker_init_fn=ignore_in_worker,
        persistent_workers=num_workers > 0 and _workers_stay(),
    )
    return EpochLoader(loader, on_gpu)


def eval_loader(dataset: Dataset[Any], batch_size: int, num_workers: int, shared: bool, on_gpu: bool) -> Any:
    """A loader in the dataset's order, over every process's own share or over everything.

    Args:
        dataset: A map-style dataset; its `collater` is used if it has one.
        batch_size: Samples per process.
        num_workers: Loading processes.
        shared: Give each process its own share.
        on_gpu: Pin memory and prefetch.
    """
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, pin_memory=on_gpu)
    everything = range(len(dataset))
    # A plain stride, where LAVIS pads the shares to equal length and so scores some samples twice. A process without a
    # share takes the first sample: LAVIS's meter divides by the number of batches, and tasks drop doubles by id.
    share = everything[distributed.rank() :: distributed.world_size()] or everything[:1]
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=share if shared else everything,
        num_workers=num_workers,
        collate_fn=getattr(dataset, "collater", None),
        pin_memory=on_gpu,
        worker_init_fn=ignore_in_worker,
        persistent_workers=num_workers > 0 and _workers_stay(),
    )
    return _prefetched(loader, on_gpu)


def joined(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Datasets by split: training sets concatenated, by LAVIS's own rules.

    Args:
        datasets: Splits by dataset name, as LAVIS's tasks build them.
    """
    from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split

    return concat_datasets(reorg_datasets_by_split(datasets))
