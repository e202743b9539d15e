"""Computing the features that a cache lacks."""

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lavis_peft.checks import first_line
from lavis_peft.datasets.bad_samples import BadSample
from lavis_peft.datasets.dataset import drawing_from
from lavis_peft.datasets.images import UnreadableImage, decoded
from lavis_peft.errors import DataError
from lavis_peft.features.encoder import Encoder
from lavis_peft.features.space import Space
from lavis_peft.features.store import Store, Writer
from lavis_peft.runners.signals import ignore_in_worker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A feature to be computed.

    Args:
        key: Its name in the store.
        digest: SHA-256 of the picture's file.
        path: The picture's file.
        where: The record that names it.
        draw: What a random transform's draws follow from; "" where nothing is drawn.
    """

    key: bytes
    digest: bytes
    path: str
    where: str
    draw: str


class _Pictures(Dataset[Any]):
    """The pictures of jobs, as the encoder takes them, or why one can't be had."""

    def __init__(self, jobs: Sequence[Job], processor: Callable[[Any], torch.Tensor]) -> None:
        self._jobs = jobs
        self._processor = processor

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | BadSample]:
        job = self._jobs[index]
        try:
            picture = _read(job)
        except UnreadableImage as error:
            return index, BadSample(str(error))
        if not job.draw:
            return index, self._processor(picture)
        with drawing_from(job.draw):
            return index, self._processor(picture)


def _read(job: Job) -> Image.Image:
    """A job's picture; not one that took its place since its digest was computed, whose features these would not be."""
    try:
        content = Path(job.path).read_bytes()
    except OSError as error:
        raise UnreadableImage(
            f"{job.path}: the image can't be read ({first_line(error)}); named by {job.where}"
        ) from None
    if hashlib.sha256(content).digest() != job.digest:
        raise UnreadableImage(
            f"{job.path}: the image was changed while features were computed; start the run again; named by {job.where}"
        )
    return decoded(io.BytesIO(content), job.path, job.where)


@dataclass(frozen=True)
class Filling:
    """How features are computed.

    Args:
        encoder: Computes them.
        batch_size: Pictures at once.
        workers: Processes that load pictures.
        skips: Pass over pictures that can't be read; else they are an error.
    """

    encoder: Encoder
    batch_size: int
    workers: int
    skips: bool

    def fill(
        self,
        space: Space,
        store: Store,
        jobs: Sequence[Job],
        processor: Callable[[Any], torch.Tensor],
        done: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Compute features and write them batch by batch; what is written stays, whenever the process ends.

        Args:
            space: What they are of.
            store: Takes them.
            jobs: This process's.
            processor: The image processor.
            done: Called after each batch with its number of pictures.

        Raises:
            UnreadableImage: A picture can't be read, and `skips` is off.
            DataError: The processor gives pictures of different sizes.
            RunFailed: The encoder gives no finite numbers.
            DiskFull, WriteError: There is no room.
        """
        loader = DataLoader(
            _Pictures(jobs, processor),
            batch_size=self.batch_size,
            num_workers=self.workers if len(jobs) > self.batch_size else 0,
            collate_fn=list,
            worker_init_fn=ignore_in_worker,
        )
        writer = Writer(store)
        for batch in loader:
            whole = [(jobs[index].key, self._usable(picture)) for index, picture in batch]
            found = [(key, picture) for key, picture in whole if picture is not None]
            if found:
                shapes = {tuple(picture.shape) for _, picture in found}
                if len(shapes) > 1:
                    raise DataError(f"the vis_processor gives pictures of different sizes: {sorted(shapes)}")
                features = self.encoder.encode(torch.stack([picture for _, picture in found]), store.dtype)
                if space.fingerprint() is None:
                    space.create(self.encoder.fingerprint())
                writer.add([key for key, _ in found], features)
            done(len(batch))

    def _usable(self, picture: torch.Tensor | BadSample) -> torch.Tensor | None:
        if isinstance(picture, torch.Tensor):
            return picture
        if not self.skips:
            raise UnreadableImage(picture.reason)
        return None  # training names it, and counts it
