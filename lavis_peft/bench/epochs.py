"""Three epochs over the same pictures, from their files: with `run.feature_cache`, without it, and the plain way."""

import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lavis_peft.bench import measure
from lavis_peft.bench.table import Row
from lavis_peft.bench.work import Work
from lavis_peft.datasets.dataset import InstructDataset
from lavis_peft.datasets.images import ImageFiles
from lavis_peft.datasets.records import Record
from lavis_peft.datasets.template import parse_template
from lavis_peft.features.encoder import Encoder
from lavis_peft.features.filling import Filling
from lavis_peft.features.prepare import prepare
from lavis_peft.features.spec import CacheSpec
from lavis_peft.processors.image import PeftImageProcessor

EPOCHS = 3
#: Batches of an epoch.
BATCHES = 4
CACHED = "lavis-peft, feature_cache"


@dataclass(frozen=True)
class Pictures:
    """Questions, each about a picture of its own, and a folder for caches.

    Args:
        records: The questions.
        image_size: Side of a picture as the model sees it, pixels.
        batch: Samples of a batch.
        device: Where the model is.
        folder: An existing folder.
    """

    records: list[Record]
    image_size: int
    batch: int
    device: str
    folder: Path

    @classmethod
    def drawn(cls, work: Callable[[int], Work], batch: int, device: str, folder: Path) -> "Pictures":
        """Draw pictures (JPEG, 640 × 480) and questions.

        Args:
            work: Draws so many samples.
            batch: Samples of a batch.
            device: Where the model is.
            folder: An existing folder.
        """
        drawn, generator, records = work(batch * BATCHES), random.Random(0), []
        for number, (prompt, target) in enumerate(zip(drawn.prompts, drawn.targets, strict=True)):
            path = folder / f"{number}.jpg"
            noise = Image.frombytes("RGB", (80, 60), generator.randbytes(80 * 60 * 3))
            noise.resize((640, 480)).save(path, "JPEG")
            records.append(Record(str(path), path.name, prompt, (target,), (), str(number), "bench"))
        return cls(records, drawn.image.shape[-1], batch, device, folder)

    def dataset(self) -> InstructDataset:
        """They as a run's dataset."""
        return InstructDataset(
            self.records,
            ImageFiles(),
            parse_template("{question}", ["question"], "prompt"),
            parse_template("{answer}", ["answer"], "target"),
            PeftImageProcessor(self.image_size),
            str,
            train=True,
        )

    def batches(self, dataset: Any) -> Iterator[Work]:
        """An epoch's batches, loaded one by one."""
        for start in range(0, len(dataset), self.batch):
            found = dataset.collater([dataset[index] for index in range(start, start + self.batch)])
            yield Work(found["image"].to(self.device), found["text_input"], found["text_output"], [])


def train(contender: Any, pictures: Pictures, dtype: str | None = None) -> list[float]:
    """Three epochs; gives the loss of each step.

    Args:
        contender: Has ``train``; with a cache also the plugin's ``model``.
        pictures: What is trained on.
        dtype: Of a feature cache, which begins empty and is filled first; None for none.
    """
    dataset = pictures.dataset()
    with tempfile.TemporaryDirectory(dir=pictures.folder) as folder:
        if dtype is not None:
            filling = Filling(Encoder(contender.model), pictures.batch, 0, skips=False)
            prepare(CacheSpec(folder, dtype), [dataset], filling)
        return [contender.train(batch) for _ in range(EPOCHS) for batch in pictures.batches(dataset)]


def rows(
    contenders: Mapping[str, Any],
    ours: str,
    pictures: Pictures,
    repeats: int,
    progress: Callable[[], Any] = lambda: None,
) -> list[Row]:
    """The time of three epochs for the plugin with a cache, the plugin without, and the plain way if it is there.

    Args:
        contenders: By name.
        ours: The plugin's name.
        pictures: What is trained on.
        repeats: Interleaved rounds.
        progress: Called after each action.
    """
    actions: dict[str, Callable[[], Any]] = {CACHED: partial(train, contenders[ours], pictures, "half")}
    actions |= {name: partial(train, contenders[name], pictures) for name in (ours, "plain") if name in contenders}
    times = measure.interleaved(actions, repeats, pictures.device, progress)
    found = []
    for name in actions:
        ratio = measure.Ratio.of(times[name], times[CACHED])
        seconds = statistics.median(times[name])
        found.append(
            Row(
                what=f"{EPOCHS} epochs",
                who=name,
                seconds=seconds,
                samples_per_second=EPOCHS * len(pictures.records) / seconds,
                ratio=None if name == CACHED else (ratio.median, ratio.low, ratio.high),
            )
        )
    return found
