import json
import sys

import pytest
import torch
from omegaconf import OmegaConf

import lavis_peft
from lavis_peft.errors import ConfigError, MissingExtra, UserError

CAPTIONS = ["a dog runs", "two men play chess", ""]
PEOPLE = [["a dog runs on grass", "the dog runs"], ["two men playing chess", "men play"], ["a red ball", "one ball"]]


@pytest.fixture(scope="module")
def task_class():
    lavis_peft.register()
    from lavis.common.registry import registry

    return registry.get_task_class("captioning_peft")


@pytest.fixture
def library():
    """LAVIS comes first: it must have had its stand-in, or the library itself, by its own import."""
    lavis_peft.register()
    return pytest.importorskip("pycocoevalcap")


@pytest.fixture
def result_dir(tmp_path, task_class, monkeypatch):
    from lavis.common.registry import registry

    monkeypatch.setitem(registry.mapping["paths"], "result_dir", str(tmp_path / "result"))
    return tmp_path / "result"


class Writes(torch.nn.Module):
    device = torch.device("cpu")

    def before_evaluation(self, **kwargs):
        pass

    def generate(self, samples, **options):
        self.asked = {"prompt": samples["prompt"], **options}
        return CAPTIONS[: len(samples["prompt"])]


def batch(count=3):
    return {
        "image": torch.zeros(count, 3, 4, 4),
        "text_input": ["A short image description:"] * count,
        "question_id": [str(number) for number in range(count)],
        "image_id": [f"{number}.jpg" for number in range(count)],
        "answers": PEOPLE[:count],
        "groups": [{}] * count,
    }


def config(**run):
    return type("Cfg", (), {"run_cfg": OmegaConf.create(run), "datasets_cfg": OmegaConf.create({"absent": {}})})()


def test_captions_are_generated_scored_and_written(task_class, result_dir, library, caplog):
    from lavis_peft.metrics.captions import CaptionScorer

    task, model = task_class.setup_task(cfg=config()), Writes()
    task.before_evaluation(model, object())
    rows = task.evaluation(model, [batch()])
    expected_options = {"num_beams": 5, "max_length": 30, "min_length": 1}
    assert model.asked == {"prompt": ["A short image description:"] * 3, **expected_options}
    found = task.after_evaluation(val_result=rows, split_name="test", epoch="best")
    expected, each = CaptionScorer().score(CAPTIONS, PEOPLE)
    assert found == {"agg_metrics": expected["CIDEr"], **expected, "total": 3, "empty": 1} and found["CIDEr"] > 10
    written = json.loads((result_dir / "test_best.json").read_text())
    assert [row["CIDEr"] for row in written] == each and each[2] == 0.0
    assert written[0]["prediction"] == "a dog runs" and written[0]["answers"] == PEOPLE[0]


def test_predictions_outlive_a_score_that_fails(task_class, result_dir, library, monkeypatch):
    task = task_class.setup_task(cfg=config())

    def fails(captions, references):
        raise UserError("Java died")

    monkeypatch.setattr(task.scorer, "score", fails)
    rows = task.evaluation(Writes(), [batch()])
    with pytest.raises(UserError, match="Java died"):
        task.after_evaluation(val_result=rows, split_name="test", epoch=0)
    assert [row["prediction"] for row in json.loads((result_dir / "test_0.json").read_text())] == CAPTIONS


def test_without_java_it_says_so_before_training(task_class, library, monkeypatch, caplog):
    monkeypatch.setattr("shutil.which", lambda name: None)
    task = task_class.setup_task(cfg=config(valid_splits=["val"]))
    with pytest.raises(ConfigError, match=r"datasets\.absent: unknown"):
        task.build_datasets(config(valid_splits=["val"]))
    assert "captions are tokenized by a plain rule, as there is no program `java` on the PATH" in caplog.text


def test_without_the_library_nothing_is_trained(task_class, monkeypatch):
    class Nothing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "pycocoevalcap":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    task = task_class.setup_task(cfg=config())
    with pytest.raises(MissingExtra, match=r"pip install 'lavis-peft\[captions\]'"):
        task.build_datasets(config(test_splits=["test"]))
    with pytest.raises(ConfigError, match=r"datasets\.absent: unknown"):  # who only trains needs no scores
        task.build_datasets(config(train_splits=["train"]))


def test_wrong_options_all_at_once(task_class):
    with pytest.raises(ConfigError) as error:
        task_class.setup_task(cfg=config(max_len=3, min_len=8, caption_metrics=["CIDER", "METEOR"], num_beams=1.5))
    assert error.value.problems == [
        "run.num_beams: expected a whole number of at least 1, found 1.5",
        "run.caption_metrics: unknown score 'CIDER'; allowed: METEOR, SPICE",
    ]
    with pytest.raises(ConfigError, match=r"run\.min_len: 8 is more than run\.max_len, 3"):
        task_class.setup_task(cfg=config(max_len=3, min_len=8))
    with pytest.raises(ConfigError, match="caption_metrics: expected a list, of METEOR, SPICE; found 'METEOR'"):
        task_class.setup_task(cfg=config(caption_metrics="METEOR"))
    assert task_class.setup_task(cfg=config(caption_metrics=["METEOR"])).options.caption_metrics == ("METEOR",)
