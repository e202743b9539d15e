"""The task, the dataset and a real small model together."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

import lavis_peft

QUESTIONS = [
    ("what color is the shape?", "red", ["red", "green", "blue"]),
    ("is there a circle?", "no", ["yes", "no"]),
    ("what shape is in the picture?", "circle", ["circle", "square", "triangle", "black"]),
    ("is the shape green?", "yes", ["yes", "no"]),
    ("how many?", "a", []),
]


@pytest.fixture
def dataset(tmp_path):
    lavis_peft.register()
    from lavis_peft.datasets import BUILDERS

    records = []
    for number, (question, answer, choices) in enumerate(QUESTIONS):
        Image.new("RGB", (32, 32), (number * 50, 255 - number * 50, 90)).save(tmp_path / f"{number}.png")
        records.append({"image": f"{number}.png", "question": question, "answer": answer, "choices": choices})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, records)))
    builder = BUILDERS["instruct_json"]
    section = OmegaConf.load(builder.default_config_path()).datasets.instruct_json
    processor = {"name": "peft_image", "image_size": 32}
    section.vis_processor = {"train": processor, "eval": processor}
    storage = {"storage": str(tmp_path / "test.jsonl")}
    section.build_info = {"annotations": {"train": storage, "test": storage}}
    return builder(section).build_datasets()


@pytest.fixture
def model(model_section, qformer_lora):
    from lavis.common.registry import registry

    section = OmegaConf.create(model_section("t5", adapters=qformer_lora))
    torch.manual_seed(0)
    return registry.get_model_class(section.arch).from_config(section).eval()


@pytest.fixture
def task():
    from lavis_peft.tasks import TASKS

    run = OmegaConf.create({"open_ended": "generate", "num_beams": 1, "max_len": 4})
    return TASKS["multiple_choice_vqa"].setup_task(cfg=type("Cfg", (), {"run_cfg": run})())


def test_predictions_do_not_depend_on_the_batch_size(dataset, model, task):
    found = {}
    for size in (1, 2, 5):
        loader = DataLoader(dataset["test"], batch_size=size, collate_fn=dataset["test"].collater)
        task.before_evaluation(model, dataset["test"])
        found[size] = task.evaluation(model, loader)
        assert task.after_evaluation(val_result=found[size], split_name="test", epoch=0)["total"] == len(QUESTIONS)
    for size in (2, 5):
        for alone, together in zip(found[1], found[size], strict=True):
            assert alone["prediction"] == together["prediction"]
            assert alone["scores"] == pytest.approx(together["scores"], rel=1e-4)
    for row, (_, _, choices) in zip(found[1], QUESTIONS, strict=True):
        assert len(row["scores"]) == len(choices) and (row["prediction"] in choices or not choices)


def test_a_training_step_has_a_gradient(dataset, model, task):
    train = dataset["train"]
    result = task.train_step(model.train(), train.collater([train[index] for index in range(len(train))]))
    loss = result[0] if isinstance(result, tuple) else result
    loss.backward()
    assert torch.isfinite(loss) and model.query_tokens.grad.abs().sum() > 0


@pytest.fixture
def of_several_answers(dataset):
    """The same pictures, each with ten answers."""
    from dataclasses import replace

    test = dataset["test"]
    test.records = [replace(record, answers=(*record.answers, *["red"] * 9), choices=()) for record in test.records]
    return test


@pytest.mark.parametrize(("name", "score"), [("vqa_accuracy_peft", "accuracy"), ("captioning_peft", "CIDEr")])
def test_texts_are_generated_and_scored(name, score, of_several_answers, model):
    from lavis_peft.tasks import TASKS

    if name == "captioning_peft":
        pytest.importorskip("pycocoevalcap")
    run = OmegaConf.create({"num_beams": 2, "max_len": 4, "length_penalty": 0.5})
    task = TASKS[name].setup_task(cfg=type("Cfg", (), {"run_cfg": run})())
    found = {}
    for size in (2, 5):
        loader = DataLoader(of_several_answers, batch_size=size, collate_fn=of_several_answers.collater)
        task.before_evaluation(model, of_several_answers)
        rows = task.evaluation(model, loader)
        found[size] = [row["prediction"] for row in rows]
        scored = task.after_evaluation(val_result=rows, split_name="test", epoch=0)
        assert scored["total"] == len(QUESTIONS) and scored["agg_metrics"] == scored[score]
    assert found[2] == found[5] and any(found[2])
