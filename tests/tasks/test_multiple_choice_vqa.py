import inspect
import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import lavis_peft
from lavis_peft.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def task_class():
    lavis_peft.register()
    from lavis_peft.tasks import TASKS

    return TASKS["multiple_choice_vqa"]


class FakeModel:
    """Prefers the candidate that the prompt names; counts what it is asked."""

    device = torch.device("cpu")

    def __init__(self):
        self.batches = []

    def before_evaluation(self, **kwargs):
        self.asked = kwargs

    def score_candidates(self, image, prompts, candidates):
        self.batches.append((image.shape[0], prompts, candidates))
        return [
            torch.tensor([0.5 if f"<{text}>" in prompt else 2.0 for text in texts])
            for prompt, texts in zip(prompts, candidates, strict=True)
        ]

    def predict_answers(self, samples, num_beams, inference_method, max_len, min_len):
        assert inference_method == "generate" and samples["image"].shape[0] == len(samples["text_input"])
        return [f" {prompt.upper()}." for prompt in samples["text_input"]]


def batch(*questions):
    """(wanted prediction, answer, choices) for each sample."""
    return {
        "image": torch.zeros(len(questions), 3, 4, 4),
        "text_input": [f"say <{wanted}>" for wanted, _, _ in questions],
        "question_id": [str(index) for index in range(len(questions))],
        "question_type": ["kind"] * len(questions),
        "answer": [answer for _, answer, _ in questions],
        "choices": [choices for _, _, choices in questions],
    }


QUESTIONS = [("b", "b", ["a", "b"]), ("c", "a", ["a", "b", "c"]), ("z", "z", ["x", "y", "z", "w"])]


def test_it_is_registered(task_class):
    from lavis.common.registry import registry

    assert registry.get_task_class("multiple_choice_vqa") is task_class


def test_train_step_is_what_this_laviss_loop_expects(task_class):
    from lavis.tasks.base_task import BaseTask

    def model(samples):
        return {"loss": torch.tensor(2.0), "logits": None}

    result = task_class().train_step(model, {})
    pair = "loss, loss_dict" in inspect.getsource(BaseTask._train_inner_loop)
    assert (result[0] if pair else result) == torch.tensor(2.0)
    assert not pair or set(result[1]) == {"loss"}


def test_each_sample_is_ranked_among_its_own_choices(task_class):
    rows = task_class().valid_step(FakeModel(), batch(*QUESTIONS))
    assert [row["prediction"] for row in rows] == ["b", "c", "z"]
    assert [row["correct"] for row in rows] == [True, False, True]
    assert [len(row["scores"]) for row in rows] == [2, 3, 4]
    assert rows[1]["choices"] == ["a", "b", "c"] and rows[1]["scores"] == [2.0, 2.0, 0.5]


def test_batch_size_makes_no_difference(task_class):
    together = task_class().valid_step(FakeModel(), batch(*QUESTIONS))
    for question, row in zip(QUESTIONS, together, strict=True):
        (alone,) = task_class().valid_step(FakeModel(), batch(question))
        assert {**alone, "question_id": row["question_id"]} == row


def test_candidates_are_ranked_and_choices_reported(task_class):
    samples = batch(("(b) dog", "dog", ["cat", "dog"]))
    samples["candidates"] = [["(a) cat", "(b) dog"]]
    (row,) = task_class().valid_step(FakeModel(), samples)
    assert row["prediction"] == "dog" and row["correct"]


def test_any_of_several_answers_is_right(task_class):
    samples = {**batch(("c", "a", ["a", "b", "c"])), "answers": [["a", "c"]]}
    assert task_class().valid_step(FakeModel(), samples)[0]["correct"]


def test_groups_are_counted(task_class, result_dir):
    samples = {
        **batch(*QUESTIONS),
        "groups": [{"grade": ("1-6",), "modality": ["text", "image"]}, {"grade": ["1-6"]}, {}],
    }
    task = task_class()
    rows = task.valid_step(FakeModel(), samples)
    assert rows[0]["groups"] == {"grade": ["1-6"], "modality": ["text", "image"]} and "groups" not in rows[2]
    found = task.after_evaluation(val_result=rows, split_name="val", epoch=0)
    assert found["accuracy_by_group"] == {"grade": {"1-6": 50.0}, "modality": {"image": 100.0, "text": 100.0}}


def test_scores_that_are_no_numbers(task_class):
    class Diverged(FakeModel):
        def score_candidates(self, image, prompts, candidates):
            return [torch.tensor([1.0, float("nan")]) for _ in prompts]

    with pytest.raises(DataError, match="question '0': the model's scores aren't numbers"):
        task_class().valid_step(Diverged(), batch(("a", "a", ["a", "b"])))


def test_open_questions_are_refused_or_generated(task_class):
    samples = batch(QUESTIONS[0], ("hello", "say <hello>", []), QUESTIONS[2])
    with pytest.raises(DataError, match="question '1' has no choices"):
        task_class().valid_step(FakeModel(), samples)
    config = OmegaConf.create({"run": {"open_ended": "generate"}})
    task = task_class.setup_task(cfg=type("Cfg", (), {"run_cfg": config.run})())
    rows = task.valid_step(FakeModel(), samples)
    assert [row["prediction"] for row in rows] == ["b", " SAY <HELLO>.", "z"]
    assert [row["correct"] for row in rows] == [True, True, True] and rows[1]["scores"] == []


class Questions:
    def __init__(self, ids):
        self.ids = ids

    def question_ids(self):
        return self.ids


@pytest.fixture
def result_dir(tmp_path, task_class, monkeypatch):
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping["paths"], "result_dir", str(tmp_path / "result"))
    return tmp_path / "result"


def test_a_split_is_evaluated_and_written(task_class, result_dir, capfd):
    task, model = task_class(), FakeModel()
    batches = [batch(*QUESTIONS), batch(*QUESTIONS)]
    batches[1]["question_id"] = ["3", "4", "5"]
    task.before_evaluation(model, Questions([str(number) for number in range(6)]))
    found = task.evaluation(model, batches)
    result = task.after_evaluation(val_result=found, split_name="test", epoch="best")
    assert result["total"] == 6 and result["agg_metrics"] == pytest.approx(100 * 4 / 6)
    assert result["accuracy_by_type"] == {"kind": pytest.approx(100 * 4 / 6)}
    written = json.loads((result_dir / "test_best.json").read_text())
    assert [row["question_id"] for row in written] == [str(number) for number in range(6)]
    assert set(written[0]) >= {"question_id", "question_type", "prediction", "answer", "correct", "scores"}
    assert "evaluation" not in capfd.readouterr().err, "the progress bar must be quiet where there is no terminal"


def test_a_skipped_question_is_an_error(task_class, result_dir):
    task, model = task_class(), FakeModel()
    task.before_evaluation(model, Questions(["0", "1", "2", "3"]))
    found = task.evaluation(model, [batch(*QUESTIONS)])
    with pytest.raises(DataError, match=r"1 of 4 questions were not answered \(3\)"):
        task.after_evaluation(val_result=found, split_name="test", epoch=0)
    assert not result_dir.exists()


@pytest.fixture
def config(tmp_path):
    """A LAVIS-like config over two questions, one of them open."""

    def make(run, datasets=None, answer="x", choices=("x", "y")):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        record = {"image": "a.png", "question": "q?", "answer": answer}
        record |= {"choices": list(choices)} if choices else {}
        (tmp_path / "t.json").write_text(json.dumps([record]))
        from lavis_peft.datasets import BUILDERS

        section = OmegaConf.load(BUILDERS["instruct_json"].default_config_path()).datasets.instruct_json
        storage = {"storage": str(tmp_path / "t.json")}
        section.build_info = {"annotations": {"train": storage, "val": storage}}
        names = datasets or {"instruct_json": section}
        return type("Cfg", (), {"run_cfg": OmegaConf.create(run), "datasets_cfg": OmegaConf.create(names)})()

    return make


def test_datasets_are_built_and_seeded(task_class, config):
    run = {"train_splits": ["train"], "valid_splits": ["val"], "seed": 5}
    datasets = task_class().build_datasets(config(run))
    assert {split: len(dataset) for split, dataset in datasets["instruct_json"].items()} == {"train": 1, "val": 1}
    first = datasets["instruct_json"]["train"][0]["image"]
    again = task_class().build_datasets(config(run))["instruct_json"]["train"][0]["image"]
    assert torch.equal(first, again)


def test_a_split_that_is_not_there(task_class, config):
    with pytest.raises(ConfigError, match="run.test_splits: no dataset has a split 'test'"):
        task_class().build_datasets(config({"test_splits": ["test"]}))


def test_an_unknown_dataset(task_class, config):
    with pytest.raises(ConfigError, match=r"datasets\.instruct_jsn: unknown"):
        task_class().build_datasets(config({}, datasets={"instruct_jsn": {}}))


def test_open_questions_are_found_before_training(task_class, config):
    with pytest.raises(DataError, match=r"t\.json: record 1 .*no 'choices'.*1 of the 1 questions of split val"):
        task_class().build_datasets(config({"valid_splits": ["val"]}, choices=()))
    assert task_class().build_datasets(config({"train_splits": ["train"]}, choices=()))


def test_wrong_options_of_the_run(task_class):
    config = OmegaConf.create({"run": {"open_ended": "guess"}})
    with pytest.raises(ConfigError, match=r"run\.open_ended: found 'guess'"):
        task_class.setup_task(cfg=type("Cfg", (), {"run_cfg": config.run})())
