import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lavis_peft.datasets.dataset import InstructDataset
from lavis_peft.datasets.images import ImageFiles, UnreadableImage
from lavis_peft.datasets.records import Record
from lavis_peft.datasets.template import parse_template
from lavis_peft.errors import DataError


def record(path, number, answers=("y",), choices=("x", "y")):
    place = f"t.json: record {number}"
    return Record(str(path), path.name, f"q{number}?", answers, choices, str(number), place, "kind")


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def noisy(image):
    return to_tensor(image) + torch.rand(1) + random.random() + float(np.random.rand())


def make(records, *, target="{answer}", vis_processor=to_tensor, train=False, **options):
    prompt = parse_template("Q: {question} {options} or {choices}", ("question", "options", "choices"), "p")
    parsed = parse_template(target, ("answer", "letter"), "t")
    return InstructDataset(records, ImageFiles(), prompt, parsed, vis_processor, str.strip, train, **options)


def test_a_sample_has_the_contract(pictures):
    sample = make([record(pictures / "a.png", 4)], target="({letter}) {answer}")[0]
    assert sample.pop("image").shape == (3, 8, 8)
    assert sample == {
        "text_input": "Q: q4? (a) x (b) y or x, y",
        "text_output": "(b) y",
        "question_id": "4",
        "image_id": "a.png",
        "question_type": "kind",
        "groups": {},
        "answer": "y",
        "answers": ["y"],
        "choices": ["x", "y"],
        "candidates": ["(a) x", "(b) y"],
        "instance_id": "0",
    }


def test_collation_keeps_each_samples_own_choices(pictures):
    dataset = make(
        [
            record(pictures / "a.png", 0),
            record(pictures / "b.png", 1, ("z",), ("x", "y", "z")),
            record(pictures / "c.png", 2, ("open",), ()),
        ]
    )
    batch = dataset.collater([dataset[index] for index in range(3)])
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["choices"] == [["x", "y"], ["x", "y", "z"], []]
    assert batch["question_id"] == ["0", "1", "2"] and batch["answer"] == ["y", "z", "open"]


def test_pictures_of_two_sizes_in_a_batch(pictures, tmp_path):
    from PIL import Image

    Image.new("RGB", (9, 8)).save(tmp_path / "wide.png")
    dataset = make([record(pictures / "a.png", 0), record(tmp_path / "wide.png", 1)])
    with pytest.raises(DataError, match="pictures of different sizes in one batch"):
        dataset.collater([dataset[0], dataset[1]])


def test_targets_are_drawn_in_training_only(pictures):
    answers = ("u", "v", "v", "w")
    records = [record(pictures / "a.png", number, answers, ()) for number in range(30)]
    assert {make(records)[index]["text_output"] for index in range(30)} == {"u"}
    train = make(records, train=True)
    drawn = [train[index]["text_output"] for index in range(30)]
    assert set(drawn) == {"u", "v", "w"}
    assert {sample["answer"] for sample in (train[0], train[1])} == {"u"}
    assert drawn == [train[index]["text_output"] for index in range(30)]
    train.set_epoch(1)
    assert drawn != [train[index]["text_output"] for index in range(30)]


def test_every_answer_is_a_target_of_the_batch(pictures):
    answers = (("red", "red", "blue"), ("green",))
    records = [record(pictures / f"{name}.png", n, answers[n], ()) for n, name in enumerate("ab")]
    dataset = make(records, train=True, every_answer=True)
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["text_output"] == ["red", "red", "blue", "green"]
    assert batch["question_id"] == ["0", "0", "0", "1"]
    assert batch["image"].shape == (4, 3, 8, 8)
    assert torch.equal(batch["image"][0], batch["image"][2])
    assert not torch.equal(batch["image"][2], batch["image"][3])
    evaluated = make(records, every_answer=True)
    assert evaluated.collater([evaluated[0], evaluated[1]])["text_output"] == ["red", "green"]


def test_the_separator_of_the_options(pictures):
    sample = make([record(pictures / "a.png", 4)], option_separator="\n")[0]
    assert sample["text_input"] == "Q: q4? (a) x\n(b) y or x, y"


def test_groups_are_in_the_sample(pictures):
    grouped = replace(record(pictures / "a.png", 0), groups={"grade": ("1-6",), "modality": ("text", "image")})
    dataset = make([grouped, record(pictures / "b.png", 1)])
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["groups"] == [{"grade": ["1-6"], "modality": ["text", "image"]}, {}]


def test_augmentation_depends_on_seed_epoch_and_index_alone(pictures):
    records = [record(pictures / "a.png", number) for number in range(4)]
    first, second = make(records, vis_processor=noisy, train=True), make(records, vis_processor=noisy, train=True)
    torch.manual_seed(1)
    images = [first[index]["image"] for index in range(4)]
    torch.manual_seed(2)
    again = {index: second[index]["image"] for index in (3, 1, 0, 2)}
    assert all(torch.equal(images[index], again[index]) for index in range(4))
    assert not torch.equal(images[0], images[1])
    second.set_epoch(1)
    assert not torch.equal(images[0], second[0]["image"])
    second.set_epoch(0, seed=9)
    assert not torch.equal(images[0], second[0]["image"])
    second.set_epoch(0, seed=0)
    assert torch.equal(images[0], second[0]["image"])


def test_augmentation_leaves_the_programs_generators_alone(pictures):
    dataset = make([record(pictures / "a.png", 0)], vis_processor=noisy, train=True)
    expected = []
    for touch in (False, True):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        if touch:
            dataset[0]
        expected.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert expected[0] == expected[1]


def test_data_workers_give_the_same_samples(pictures):
    records = [record(pictures / "a.png", number, ("u", "v", "w"), ()) for number in range(6)]
    dataset = make(records, vis_processor=noisy, train=True)
    batches = [
        next(iter(DataLoader(dataset, batch_size=6, collate_fn=dataset.collater, num_workers=workers)))
        for workers in (0, 2)
    ]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert batches[0]["text_output"] == batches[1]["text_output"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_names_its_record_without_a_traceback(pictures, workers):
    path = pictures / "b.png"
    path.write_bytes(path.read_bytes()[:40])
    dataset = make([record(pictures / "a.png", 0), record(path, 1)])
    with pytest.raises(UnreadableImage) as error:
        list(DataLoader(dataset, batch_size=1, collate_fn=dataset.collater, num_workers=workers))
    text = str(error.value)
    assert text.startswith(str(path)) and text.endswith("named by t.json: record 1 (question_id '1')")
    assert "Traceback" not in text


def test_lengths_are_those_of_the_texts_and_need_no_picture(pictures):
    records = [record(pictures / "a.png", 4, answers=("x", "longer"), choices=("x", "longer"))]
    records.append(record(pictures / "gone.png", 5))
    dataset = make(records, target="({letter}) {answer}", train=True)
    first = dataset[0]
    assert dataset.text_lengths() == [
        len(first["text_input"]) + len("(b) longer"),
        len("Q: q5? (a) x (b) y or x, y") + len("(b) y"),
    ]


def test_a_dataset_can_be_sent_to_a_new_process(pictures):
    dataset = make([record(pictures / "a.png", 4)], vis_processor=noisy, train=True)
    dataset.set_epoch(3, seed=7)
    sent = pickle.loads(pickle.dumps((dataset, dataset.collater)))
    assert torch.equal(sent[0][0]["image"], dataset[0]["image"])
    assert sent[1]([sent[0][0]])["text_input"] == ["Q: q4? (a) x (b) y or x, y"]
