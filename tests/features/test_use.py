"""A dataset that reads features."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import lavis_peft

lavis_peft.register()

from lavis.datasets.datasets.base_dataset import ConcatDataset  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.datasets.dataset import InstructDataset  # noqa: E402
from lavis_peft.datasets.images import ImageFiles  # noqa: E402
from lavis_peft.datasets.records import Record  # noqa: E402
from lavis_peft.datasets.template import parse_template  # noqa: E402
from lavis_peft.features.store import Store, Writer  # noqa: E402
from lavis_peft.features.use import CachedFeatures, key_of  # noqa: E402
from lavis_peft.processors.image import PeftImageProcessor  # noqa: E402

SHAPE = (3, 4)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return paths


def dataset(paths: list[str], train: bool = True) -> InstructDataset:
    records = [Record(path, path, "?", ("a", "b"), (), str(number), "x") for number, path in enumerate(paths)]
    prompt, target = parse_template("{question}", ["question"], "p"), parse_template("{answer}", ["answer"], "t")
    return InstructDataset(records, ImageFiles(), prompt, target, PeftImageProcessor(8), str, train)


def features_of(paths: list[str], kept: list[int], folder: Path, views: int = 1) -> CachedFeatures:
    """Each picture's features are its number and its view's."""
    digests = {path: hashlib.sha256(path.encode()).digest() for path in paths}
    folder.mkdir()
    store = Store(folder, SHAPE, torch.float32)
    keys = [key_of(digests[paths[number]], view) for number in kept for view in range(views)]
    values = [torch.full(SHAPE, number + view / 10) for number in kept for view in range(views)]
    Writer(store).add(keys, torch.stack(values))
    store.reload()
    return CachedFeatures(store, digests, views)


def test_features_stand_in_the_pictures_place_and_no_picture_is_opened(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(pictures)
    data.use_features(features_of(pictures, [0, 1, 2, 3], tmp_path / "store"))
    monkeypatch.setattr(ImageFiles, "read", lambda *_: pytest.fail("a picture was opened"))
    batch = data.collater([data[number] for number in range(4)])
    assert batch["image"].shape == (4, *SHAPE)
    assert batch["image"][:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert batch["question_id"] == ["0", "1", "2", "3"]
    assert all(isinstance(value, (list, torch.Tensor)) for value in batch.values())
    assert "load_picture" not in batch


def test_a_batch_that_lacks_features_is_one_of_pictures(pictures: list[str], tmp_path: Path) -> None:
    data, plain = dataset(pictures), dataset(pictures)
    data.use_features(features_of(pictures, [0, 3], tmp_path / "store"))
    mixed = data.collater([data[number] for number in range(4)])
    expected = plain.collater([plain[number] for number in range(4)])
    assert torch.equal(mixed.pop("image"), expected.pop("image"))
    assert mixed == expected
    assert data.collater([data[0], data[3]])["image"].shape == (2, *SHAPE)


def test_a_picture_is_loaded_once_for_all_of_its_answers(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(pictures)
    data.every_answer = True
    data.use_features(features_of(pictures, [0], tmp_path / "store"))
    opened, real = [], ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, path, where: opened.append(path) or real(self, path, where))
    batch = data.collater([data[0], data[1]])
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["text_output"] == ["a", "b", "a", "b"]
    assert sorted(opened) == sorted(pictures[:2])


def test_joined_datasets_fall_back_together(pictures: list[str], tmp_path: Path) -> None:
    parts = [dataset(pictures[:2]), dataset(pictures[2:])]
    features = features_of(pictures, [0, 1, 2], tmp_path / "store")
    for part in parts:
        part.use_features(features)
    joined = ConcatDataset(parts)
    assert joined.collater([joined[0], joined[2]])["image"].shape == (2, *SHAPE)
    batch = joined.collater([joined[0], joined[3]])
    assert batch["image"].shape == (2, 3, 8, 8)
    assert torch.equal(batch["image"][0], dataset(pictures)[0]["image"])


def test_a_name_that_isnt_text_is_a_name(tmp_path: Path) -> None:
    features = CachedFeatures(Store(tmp_path, SHAPE, torch.float32), {})
    assert features.draw(os.fsdecode(b"/pictures/\xff.png"), 0) == "view-0-" + b"/pictures/\xff.png".hex()


def test_each_epoch_has_another_view(pictures: list[str], tmp_path: Path) -> None:
    data = dataset(pictures)
    data.use_features(features_of(pictures, [0, 1, 2, 3], tmp_path / "store", views=3))

    def views(epoch: int, seed: int = 0) -> list[int]:
        data.set_epoch(epoch, seed)
        return [round(10 * (float(data[number]["image"][0, 0]) - number)) for number in range(4)]

    assert [views(epoch) for epoch in range(4)] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2], [0, 1, 2, 0]]
    assert views(1, seed=9) == [1, 2, 0, 1]
    scored = dataset(pictures, train=False)
    scored.use_features(features_of(pictures, [0, 1], tmp_path / "other", views=3))
    assert [float(scored[number]["image"][0, 0]) for number in range(2)] == [0.0, 1.0]
