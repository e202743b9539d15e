import json

import pytest
import torch
from omegaconf import OmegaConf

import lavis_peft
from lavis_peft.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def task_class():
    lavis_peft.register()
    from lavis.common.registry import registry

    return registry.get_task_class("vqa_accuracy_peft")


class Says(torch.nn.Module):
    """Answers a question with its own text; remembers what it was asked with."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.frozen = torch.nn.Parameter(torch.full((2,), float("nan")), requires_grad=False)

    def before_evaluation(self, **kwargs):
        pass

    def predict_answers(self, samples, **options):
        self.asked = options
        return [f" {text} " for text in samples["text_input"]]


PEOPLE = [["red"] * 10, ["a dog"] * 2 + ["cat"] * 8, ["unanswerable"] * 3 + ["blue"] * 7]


def batch(*said):
    return {
        "image": torch.zeros(len(said), 3, 4, 4),
        "text_input": list(said),
        "question_id": [str(number) for number in range(len(said))],
        "answers": PEOPLE[: len(said)],
        "answer": [people[0] for people in PEOPLE[: len(said)]],
        "groups": [{"answer_type": ("other",)}, {}, {"answer_type": ["unanswerable"], "seen": ["a", "b"]}][: len(said)],
    }


def setup(task_class, **run):
    return task_class.setup_task(cfg=type("Cfg", (), {"run_cfg": OmegaConf.create(run)})())


@pytest.fixture
def result_dir(tmp_path, task_class, monkeypatch):
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping["paths"], "result_dir", str(tmp_path / "result"))
    return tmp_path / "result"


def test_answers_are_generated_and_scored(task_class, result_dir):
    task, model = setup(task_class), Says()
    task.before_evaluation(model, object())
    rows = task.evaluation(model, [batch("Red.", "dog", "unanswerable")])
    assert [row["prediction"] for row in rows] == ["Red.", "dog", "unanswerable"]
    assert [row["accuracy"] for row in rows] == pytest.approx([1.0, 0.0, 0.9])
    assert model.asked == {"num_beams": 5, "inference_method": "generate", "max_len": 10, "min_len": 1}
    found = task.after_evaluation(val_result=rows, split_name="val", epoch=0)
    assert found == {
        "agg_metrics": pytest.approx(190 / 3),
        "accuracy": pytest.approx(190 / 3),
        "accuracy_by_type": {},
        "accuracy_by_group": {
            "answer_type": {"other": 100.0, "unanswerable": pytest.approx(90)},
            "seen": {"a": pytest.approx(90), "b": pytest.approx(90)},
        },
        "total": 3,
        "accuracy_normalized": pytest.approx(250 / 3),  # "a dog" counts as "dog": two of ten people
        "empty": 0,
    }
    written = json.loads((result_dir / "val_0.json").read_text())
    assert written[1] == {
        "question_id": "1",
        "answer": "a dog",
        "answers": PEOPLE[1],
        "prediction": "dog",
        "accuracy": 0.0,
        "accuracy_normalized": pytest.approx(0.6),
    }


def test_options_reach_the_model(task_class):
    task, model = setup(task_class, num_beams=2, max_len=4, min_len=2, length_penalty=-0.5), Says()
    task.valid_step(model, batch("red"))
    assert model.asked == {
        "num_beams": 2,
        "inference_method": "generate",
        "max_len": 4,
        "min_len": 2,
        "length_penalty": -0.5,
    }
    assert set(task_class.run_keys) == {"num_beams", "max_len", "min_len", "length_penalty"}
    with pytest.raises(ConfigError, match=r"run\.num_beams.*\n.*run\.length_penalty: expected a number, found 'long'"):
        setup(task_class, num_beams=0, length_penalty="long")


def test_a_model_that_says_nothing(task_class, result_dir, caplog):
    task = setup(task_class)
    rows = task.evaluation(Says(), [batch("", " ")])
    found = task.after_evaluation(val_result=rows, split_name="val", epoch=0)
    assert found["accuracy"] == 0.0 and found["empty"] == 2
    assert "the model wrote nothing at all: all 2 predictions are empty" in caplog.text


def test_a_model_that_diverged(task_class):
    model = Says()
    model.weight.data[1] = float("inf")
    with pytest.raises(DataError, match="the model's weight isn't all numbers; its weights have diverged"):
        setup(task_class).before_evaluation(model, object())


def test_a_model_that_drops_an_answer(task_class):
    model = Says()
    model.predict_answers = lambda samples, **options: ["red"]
    with pytest.raises(DataError, match="wrote 1 texts for 2 questions"):
        setup(task_class).valid_step(model, batch("red", "dog"))


def test_questions_that_few_people_answered(task_class):
    from types import SimpleNamespace

    records = [SimpleNamespace(answers=("a",) * count, where=f"val.json: record {count}") for count in (10, 3)]
    task = setup(task_class)
    task.check_records("vizwiz_peft", "val", records[:1])
    with pytest.raises(DataError, match=r"record 3: 'answer' has 3, .*at least 4 \(1 of the 2 questions of split val"):
        task.check_records("vizwiz_peft", "val", records)
