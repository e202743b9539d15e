"""The dataset that turns records into samples. Letters: B batch, H and W height and width in pixels."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lavis_peft.datasets.bad_samples import BadSample
from lavis_peft.datasets.images import ImageFiles, UnreadableImage
from lavis_peft.datasets.records import Record
from lavis_peft.datasets.template import Template, letter, options
from lavis_peft.errors import DataError

#: A sample's key, where it may have features in place of its picture: loads the picture after all.
_PICTURE = "load_picture"


class InstructDataset(Dataset):
    """Questions about pictures, as prompts and targets.

    A sample's random draws (augmentation, which of several answers is the target) depend on the run's seed, the epoch
    and the sample's index alone: not on the order of samples, the number of data workers or the rank.

    Args:
        records: The questions.
        images: Reads the pictures.
        prompt: Template of the model's input.
        target: Template of the model's output, and of each candidate that is ranked.
        vis_processor: From an RGB picture to a tensor (3, H, W).
        text_processor: From a finished prompt to the text that the model sees.
        train: Whether this is training; else the target is a question's first answer.
        option_separator: What stands between the options of a prompt.
        every_answer: In training, `collater` repeats a question for each of its answers; else one is drawn an epoch.
    """

    #: Whether a picture that can't be read gives a `BadSample`; only in training, since a metric counts every question.
    gives_bad_samples = False

    def __init__(
        self,
        records: Sequence[Record],
        images: ImageFiles,
        prompt: Template,
        target: Template,
        vis_processor: Callable[[Any], torch.Tensor],
        text_processor: Callable[[str], str],
        train: bool = False,
        option_separator: str = " ",
        every_answer: bool = False,
    ) -> None:
        self.records = list(records)
        self._images = images
        self._prompt = prompt
        self._target = target
        self.vis_processor = vis_processor
        self._text_processor = text_processor
        self._train = train
        self._option_separator = option_separator
        #: Whether `collater` repeats questions.
        self.every_answer = train and every_answer
        self._seed = 0
        self._epoch = 0
        self._features: Any = None

    def use_features(self, features: Any) -> None:
        """From now on, give a picture's features in place of the picture where there are any.

        Args:
            features: A `features.use.CachedFeatures`.
        """
        self._features = features

    def set_epoch(self, epoch: int, seed: int | None = None) -> None:
        """Choose the epoch whose draws follow; call it before the epoch's data workers start.

        Args:
            epoch: Counted from 0.
            seed: The run's seed; the one given last if left out.
        """
        self._epoch = epoch
        self._seed = self._seed if seed is None else seed

    def __len__(self) -> int:
        return len(self.records)

    def question_ids(self) -> list[str]:
        """The ids of all questions, in order."""
        return [record.question_id for record in self.records]

    def text_lengths(self) -> list[int]:
        """Characters of each sample's prompt and longest target together; no picture is opened.

        Tokens would be nearer to what a batch costs, but only a model has a tokenizer.
        """
        return [
            len(self._prompt_of(record)) + max(len(self._render_target(record, answer)) for answer in record.answers)
            for record in self.records
        ]

    def __getitem__(self, index: int) -> dict[str, Any] | BadSample:
        """One sample.

        Raises:
            UnreadableImage: The picture is gone or can't be decoded, and `gives_bad_samples` is off.
        """
        record = self.records[index]
        try:
            image = self._image(record, index)
        except UnreadableImage as error:
            if self._train and self.gives_bad_samples:
                return BadSample(str(error))
            raise
        sample = {
            "image": image,
            "text_input": self._prompt_of(record),
            "text_output": self._render_target(record, self._draw_answer(record, index)),
            "question_id": record.question_id,
            "image_id": record.image_id,
            "question_type": record.question_type,
            "groups": {name: list(labels) for name, labels in record.groups.items()},
            "answer": record.answers[0],
            "answers": list(record.answers),
            "choices": list(record.choices),
            "candidates": [self._render_target(record, choice) for choice in record.choices],
            "instance_id": str(index),
        }
        if self._features is not None:
            sample[_PICTURE] = partial(self._picture, record, index)
        if self.every_answer:
            sample["targets"] = [self._render_target(record, answer) for answer in record.answers]
        return sample

    def _image(self, record: Record, index: int) -> torch.Tensor:
        found = None if self._features is None else self._features.of(record.image, self._view(index))
        return self._picture(record, index) if found is None else found

    def _view(self, index: int) -> int:
        return self._epoch + index if self._train else 0

    def _picture(self, record: Record, index: int) -> torch.Tensor:
        picture = self._images.read(record.image, record.where)
        if not self._draws:
            return self.vis_processor(picture)
        name = f"image-{self._seed}-{self._epoch}-{index}"
        if self._features is not None:
            name = self._features.draw(record.image, self._view(index))
        with drawing_from(name):
            return self.vis_processor(picture)

    @property
    def _draws(self) -> bool:
        return (self._train or self._features is not None) and not getattr(self.vis_processor, "deterministic", False)

    def _draw_answer(self, record: Record, index: int) -> str:
        if not self._train or len(record.answers) == 1:
            return record.answers[0]
        return random.Random(f"answer-{self._seed}-{self._epoch}-{index}").choice(record.answers)

    def _prompt_of(self, record: Record) -> str:
        return self._text_processor(self._prompt.render(_prompt_values(record, self._option_separator)))

    def _render_target(self, record: Record, answer: str) -> str:
        values = {"answer": answer}
        if "letter" in self._target.fields:
            values["letter"] = letter(record.choices.index(answer))
        return self._target.render(values)

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Samples as a batch: ``image`` stacked to (B, 3, H, W), or to features (B, P, C); every other key a list.

        With ``every_answer`` a sample of k answers becomes k, so that B is the number of answers.

        Raises:
            DataError: The pictures differ in size.
        """
        samples = [{key: value for key, value in sample.items() if key != _PICTURE} for sample in _alike(samples)]
        if self.every_answer:
            samples = [{**sample, "text_output": target} for sample in samples for target in sample["targets"]]
        shapes = {tuple(sample["image"].shape) for sample in samples}
        if len(shapes) > 1:
            raise DataError(
                f"pictures of different sizes in one batch: {sorted(shapes)}; the vis_processor must give one size"
            )
        batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
        batch["image"] = torch.stack(batch["image"])  # (B, 3, H, W) or (B, P, C)
        return batch


def _alike(samples: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The samples, all with pictures where not all have features."""
    if len({sample["image"].dim() for sample in samples}) == 1:
        return samples
    return [
        {**sample, "image": sample[_PICTURE]()} if _PICTURE in sample and sample["image"].dim() == 2 else sample
        for sample in samples
    ]


def _prompt_values(record: Record, option_separator: str) -> dict[str, str]:
    return {
        "question": record.question,
        "context": record.context,
        "options": options(record.choices, option_separator),
        "choices": ", ".join(record.choices),
    }


@contextmanager
def drawing_from(name: str) -> Iterator[None]:
    """Seed the generators that image processors draw from, and put them back afterwards.

    torch.manual_seed would do more than is wanted: it seeds the GPUs too, and so dropout.
    """
    seed = random.Random(name).getrandbits(32)
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
