"""The four benchmarks' prompts and targets, literally, from a download in the official layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import lavis_peft
from lavis_peft.prepare import BENCHMARKS, prepare

Build = Callable[..., dict[str, Any]]


@pytest.fixture
def build(official_download: Callable[..., Path], tmp_path: Path) -> Build:
    """A benchmark's datasets by split; keywords change its section."""
    lavis_peft.register()
    from lavis_peft.datasets import BUILDERS

    def make(name: str, **changes: Any) -> dict[str, Any]:
        prepare(BENCHMARKS[name], official_download(name), tmp_path / "prepared")
        builder = BUILDERS[f"{name}_peft"]
        written = OmegaConf.load(tmp_path / "prepared" / "dataset.yaml")
        config = OmegaConf.merge(OmegaConf.load(builder.default_config_path()), written)
        return builder(OmegaConf.merge(config.datasets[f"{name}_peft"], changes)).build_datasets()

    return make


def test_scienceqa(build: Build) -> None:
    datasets = build("scienceqa")
    sample = datasets["train"][1]
    # The processor drops ! * # ; from the finished prompt; the braces and the break after the last option stay.
    assert sample["text_input"] == (
        "Context: {Look at the picture. A lecture on colors.} Question: {What color is the picture?} "
        "Options: {(a) red\n(b) blue\n(c) green\n} Answer:"
    )
    assert sample["text_output"] == "(b) blue"
    assert sample["candidates"] == ["(a) red", "(b) blue", "(c) green"]
    assert sample["image"].shape == (3, 224, 224)
    assert sample["groups"] == {"subject": ["language science"], "modality": ["text", "image"], "grade": ["1-6"]}
    # Without a hint the space between hint and lecture stays, as in the research code.
    assert datasets["test"][0]["text_input"].startswith("Context: { A lecture on colors.} Question: {")


def test_iconqa(build: Build) -> None:
    sample = build("iconqa")["val"][2]
    assert sample["text_input"] == (
        "<Image> Question: What color is it? Options: (a) red (b) blue (c) green. Short answer:"
    )
    assert sample["text_output"] == "(c) green"
    assert sample["groups"] == {"skill": ["comparing"], "grade": ["grade1"]}


def test_vizwiz_trains_all_ten_answers_of_a_question(build: Build) -> None:
    datasets = build("vizwiz")
    assert datasets["val"][0]["text_input"] == "<Image> Question: What color is this? Short answer:"
    assert datasets["val"][0]["answers"] == ["red"] * 7 + ["unanswerable"] * 3
    train = datasets["train"]
    batch = train.collater([train[0], train[1]])
    assert batch["text_output"] == ["red"] * 7 + ["unanswerable"] * 3 + ["blue"] * 7 + ["unanswerable"] * 3
    assert batch["image"].shape == (20, 3, 224, 224)


def test_vizwiz_can_draw_one_answer(build: Build) -> None:
    train = build("vizwiz", train_answers="drawn")["train"]
    assert train.collater([train[0], train[1]])["image"].shape == (2, 3, 224, 224)


def test_flickr30k_has_a_sample_for_each_caption(build: Build) -> None:
    datasets = build("flickr30k")
    assert {split: len(found) for split, found in datasets.items()} == {"train": 30, "val": 3, "test": 3}
    sample = datasets["train"][6]
    assert sample["text_input"] == "<Image> A short image description:"
    assert (sample["text_output"], sample["image_id"]) == ("A blue picture number 1", "flickr30k-images/1000092796.jpg")
    assert datasets["test"][1]["answers"] == [f"A blue picture; number {index} !" for index in range(5)]
    limited = build("flickr30k", max_samples={"train": 2})["train"]
    assert len(limited) == 10
