import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lavis_peft.datasets.bad_samples import KEY, BadSample, BadSamples, leave_out
from lavis_peft.datasets.dataset import InstructDataset
from lavis_peft.datasets.images import ImageFiles, UnreadableImage
from lavis_peft.datasets.records import Record
from lavis_peft.datasets.template import parse_template
from lavis_peft.errors import ConfigError


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def make(paths, train=True):
    records = [
        Record(str(path), path.name, "q?", ("y",), ("x", "y"), str(number), f"t.json: record {number}")
        for number, path in enumerate(paths)
    ]
    prompt, target = parse_template("{question}", ("question",), "p"), parse_template("{answer}", ("answer",), "t")
    return InstructDataset(records, ImageFiles(), prompt, target, to_tensor, str.strip, train)


@pytest.fixture
def broken(pictures):
    """a and c are whole, b is cut short, d was there when the run began."""
    path = pictures / "b.png"
    path.write_bytes(path.read_bytes()[:40])
    return [pictures / f"{name}.png" for name in "abcd"]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_and_vanished_pictures_are_left_out(broken, workers):
    dataset = make(broken)
    collate = leave_out(dataset)
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=workers))
    assert [batch["question_id"] for batch in batches] == [["0"], ["2"]]
    assert [batch["image"].shape for batch in batches] == [(1, 3, 8, 8)] * 2
    (cut,), (gone,) = (batch[KEY] for batch in batches)
    assert cut.startswith(f"{broken[1]}: the image can't be read") and cut.endswith("record 1 (question_id '1')")
    assert gone.startswith(f"{broken[3]}: the image can't be read") and gone.endswith("record 3 (question_id '3')")


def test_a_batch_without_a_good_sample(broken):
    dataset = make([broken[1], broken[3]])
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=leave_out(dataset))
    assert list(batch) == [KEY] and len(batch[KEY]) == 2
    assert BadSamples().take_out(batch) == (None, 2)


def test_each_is_logged_once_and_counted_each_time(broken, caplog):
    dataset = make(broken)
    collate, left_out = leave_out(dataset), BadSamples()
    with caplog.at_level(logging.WARNING):
        taken = [left_out.take_out(batch) for _ in range(3) for batch in DataLoader(dataset, 4, collate_fn=collate)]
    assert [count for _, count in taken] == [2, 2, 2]
    assert all(KEY not in batch and batch["question_id"] == ["0", "2"] for batch, _ in taken)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all(message.startswith("Left out of training: ") for message in messages)
    assert {str(path) in message for path, message in zip(broken[1::2], messages, strict=True)} == {True}


def test_nothing_is_left_out_unless_asked_for_and_never_in_evaluation(broken):
    with pytest.raises(UnreadableImage):
        make(broken)[1]
    scored = make(broken, train=False)
    leave_out(scored)
    with pytest.raises(UnreadableImage):
        scored[1]


def test_a_whole_batch_is_as_without_it(pictures):
    dataset = make([pictures / "a.png", pictures / "c.png"])
    expected = dataset.collater([dataset[0], dataset[1]])
    found, count = BadSamples().take_out(leave_out(dataset)([dataset[0], dataset[1]]))
    assert count == 0 and found.keys() == expected.keys()
    assert torch.equal(found.pop("image"), expected.pop("image")) and found == expected


def test_several_datasets_as_one(broken):
    pytest.importorskip("lavis")
    from lavis.datasets.datasets.base_dataset import ConcatDataset

    dataset = ConcatDataset([make(broken[:2]), make(broken[2:])])
    collate = leave_out(dataset)
    assert isinstance(dataset[3], BadSample)
    batch = collate([dataset[index] for index in range(4)])
    assert batch["question_id"] == ["0", "0"] and len(batch[KEY]) == 2


def test_datasets_that_are_not_the_plugins():
    with pytest.raises(
        ConfigError, match="run.on_bad_sample: skip needs datasets of the plugin's, found TensorDataset"
    ):
        leave_out(TensorDataset(torch.zeros(1)))
