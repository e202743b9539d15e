"""Image processors: random or not, and when two of them are the same."""

import importlib
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
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

    def __call__(self, item: Any) -> Any:
        return self.transform(item)


class Flipping(Made):
    """Draws before it transforms."""

    def __call__(self, item: Any) -> Any:
        return self.transform(item.transpose(0) if random.random() < 0.5 else item)


class Resize:
    """Not torchvision's."""

    def __call__(self, item: Any) -> Any:
        return item.resize((random.randrange(4, 9),) * 2)


class Sized:
    """A step whose settings are in what it calls."""

    deterministic = True

    def __init__(self, call: Any) -> None:
        self.call = call


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
        (Made(transforms.ToTensor(), Resize()), ["Resize"]),
        (Flipping(transforms.ToTensor()), ["Flipping"]),
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


def scaled(picture: Any, factor: int = 2) -> Any:
    return picture * factor


def test_what_functions_are_given_counts() -> None:
    different = [
        Sized(scaled),
        Sized(partial(scaled, factor=3)),
        Sized(partial(scaled, factor=4)),
        Sized(lambda picture, factor=5: picture * factor),
        Sized(lambda picture, factor=6: picture * factor),
        Sized(lambda picture, *, factor=7: picture * factor),
        Sized(lambda picture, *, factor=8: picture * factor),
        Sized("red".count),
        Sized("blue".count),
        Sized(PeftImageProcessor(8).__call__),
        Sized(PeftImageProcessor(9).__call__),
    ]
    found = []
    for processor in different:
        try:
            found.append(repr(description(processor)))
        except ConfigError:  # a method of a builtin
            found.append(f"refused {len(found)}")
    assert len(set(found)) == len(found)
    assert found[1].startswith("{")


def test_the_code_of_base_classes_and_of_steps_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "class Step:\n    def __call__(self, item): return item.{step}()\n"
        "class Base:\n    deterministic = True\n    def __init__(self): self.step = Step()\n"
        "    def __call__(self, item): return self.step(item).{base}()\n"
        "class Own(Base):\n    pass\n"
    )
    found = []
    for number, words in enumerate([("one", "two"), ("one", "three"), ("other", "two")]):
        name = f"own_processor_{number}"
        (tmp_path / f"{name}.py").write_text(text.format(step=words[0], base=words[1]))
        found.append(repr(description(importlib.import_module(name).Own())).replace(name, "own"))
    assert len(set(found)) == 3


def test_a_yaml_s_lists_are_settings_like_others() -> None:
    def section(name: str) -> Any:
        whole = OmegaConf.create(
            {"name": name, "vis_processor": {"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}}
        )
        return BlipImageEvalProcessor.from_config(whole.vis_processor)

    assert description(section("one")) == description(section("two"))
    assert description(section("one")) == description(BlipImageEvalProcessor(64, [0.5] * 3, [0.5] * 3))


def test_the_contents_of_tensors_count() -> None:
    processors = [PeftImageProcessor(64), PeftImageProcessor(64)]
    processors[1]._mean = torch.full((3, 1, 1), 0.5)
    assert description(processors[0]) != description(processors[1])


def test_what_cant_be_compared_is_refused() -> None:
    processor = Made()
    processor.odd = iter(())
    with pytest.raises(ConfigError, match=r"the image processor's Made.odd, a builtins.tuple_iterator, can't be"):
        description(processor)
