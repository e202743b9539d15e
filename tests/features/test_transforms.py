"""Image processors: random or not, and when two of them are the same."""

import random
from typing import Any

import pytest
import torch
from torch import nn

import lavis_peft

lavis_peft.register()

from lavis.processors.blip_processors import (  # noqa: E402  after the plugin made LAVIS importable
    Blip2ImageTrainProcessor,
    BlipImageEvalProcessor,
    BlipImageTrainProcessor,
)
from lavis.processors.clip_processors import ClipImageEvalProcessor, ClipImageTrainProcessor  # noqa: E402
from torchvision import transforms  # noqa: E402

from lavis_peft.errors import ConfigError  # noqa: E402
from lavis_peft.features.transforms import description, random_steps  # noqa: E402
from lavis_peft.processors.image import PeftImageProcessor  # noqa: E402


class Made:
    """A processor of one's own."""

    def __init__(self, *steps: Any) -> None:
        self.transform = transforms.Compose(steps)


@pytest.mark.parametrize("cls", [PeftImageProcessor, BlipImageEvalProcessor, ClipImageEvalProcessor])
def test_processors_of_evaluations_arent_random(cls: type) -> None:
    assert random_steps(cls()) == []


@pytest.mark.parametrize(
    ("processor", "steps"),
    [
        (Blip2ImageTrainProcessor(), ["RandomResizedCrop", "RandomHorizontalFlip"]),
        (BlipImageTrainProcessor(), ["RandomResizedCrop", "RandomHorizontalFlip", "RandomAugment"]),
        (ClipImageTrainProcessor(), ["RandomResizedCrop"]),
        (Made(transforms.Lambda(lambda picture: random.random())), ["Lambda"]),
        (Made(transforms.Compose([transforms.ToTensor(), transforms.RandomRotation(5)])), ["RandomRotation"]),
        (Made(nn.Sequential(transforms.CenterCrop(4), transforms.RandomErasing())), ["RandomErasing"]),
        (random.random, ["builtin_function_or_method"]),
    ],
)
def test_random_steps_are_named(processor: Any, steps: list[str]) -> None:
    assert random_steps(processor) == steps


def test_the_same_settings_are_the_same() -> None:
    assert description(PeftImageProcessor(64)) == description(PeftImageProcessor(64))
    assert description(BlipImageEvalProcessor(64)) == description(BlipImageEvalProcessor(64))


def test_every_setting_counts() -> None:
    normal = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    modes = transforms.InterpolationMode
    different = [
        PeftImageProcessor(64),
        PeftImageProcessor(32),
        BlipImageEvalProcessor(64),
        BlipImageEvalProcessor(32),
        BlipImageEvalProcessor(64, mean=(0.5, 0.5, 0.5)),
        BlipImageEvalProcessor(64, std=(0.5, 0.5, 0.5)),
        Made(transforms.Resize(8, interpolation=modes.BICUBIC), normal),
        Made(transforms.Resize(8, interpolation=modes.BILINEAR), normal),
        Made(transforms.Resize(8, interpolation=modes.BILINEAR), transforms.CenterCrop(8), normal),
        Made(transforms.Lambda(lambda picture: picture)),
        Made(transforms.Lambda(lambda picture: picture + 1)),
    ]
    found = [repr(description(processor)) for processor in different]
    assert len(set(found)) == len(found)


def test_the_contents_of_tensors_count() -> None:
    processors = [PeftImageProcessor(64), PeftImageProcessor(64)]
    processors[1]._mean = torch.full((3, 1, 1), 0.5)
    assert description(processors[0]) != description(processors[1])


def test_what_cant_be_compared_is_refused() -> None:
    processor = Made()
    processor.odd = iter(())
    with pytest.raises(ConfigError, match=r"the image processor's Made.odd, a builtins.tuple_iterator, can't be"):
        description(processor)
