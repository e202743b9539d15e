"""Finished runs: found by their records, told from changed, unfinished, broken and foreign ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.experiments.compose import tiny_options
from lavis_peft.experiments.results import Run, read_results, read_run
from lavis_peft.experiments.settings import benchmark_of, settings

Finished = Callable[..., Path]


def only(folder: Path) -> Run:
    found = read_run(folder)
    assert isinstance(found, Run), found
    return found


@pytest.mark.parametrize("dataset", ["scienceqa", "flickr30k"])
def test_every_setting_is_recognised(dataset: str, finished: Finished) -> None:
    for key in settings():
        run = only(finished(key, dataset, 1.5, seed=3))
        assert (run.setting.key, run.benchmark.name, run.seed, run.value, run.changes) == (key, dataset, 3, 1.5, ())


def test_what_changes_nothing(finished: Finished) -> None:
    options = (
        "run.batch_size_train=4",
        "run.accum_grad_iters=4",
        "run.num_workers=0",
        "run.feature_cache.dir=/features",
        "run.init_lr='5e-4'",
        "model.adapters.qformer.sublayers=[ffn, cross_attention, self_attention]",
        "model.adapters.qformer.lora_dropout=0.0",
        "model.adapters.train=[ln_vision, query_tokens, projection]",
        "datasets.scienceqa_peft.build_info.images.storage=/elsewhere",
        "model.pretrained=/weights/instruct_blip_flanxl_trimmed.pth",
    )
    assert only(finished("28", "scienceqa", 1, options=options)).changes == ()
    many = {"distributed": True, "world_size": 4, "batch_size_train": 4, "gpu": 0, "rank": 0, "dist_backend": "nccl"}
    assert only(finished("28", "scienceqa", 1, **many)).changes == ()
    # A config may ask for several processes and be started as one.
    assert only(finished("28", "scienceqa", 1, distributed=False, world_size=4)).changes == ()


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["run.max_epoch=3"], ["run.max_epoch: 3"]),
        (["run.batch_size_train=8"], ["batch: 8"]),
        (["model.max_txt_len=256"], ["model.max_txt_len: 256"]),
        (["model.load_pretrained=false"], ["model.load_pretrained: False"]),
        (["model.pretrained=/other.pth"], ["model.pretrained: /other.pth"]),
        (["datasets.scienceqa_peft.max_samples.train=9"], ["datasets.scienceqa_peft.max_samples.train: 9"]),
        (["datasets.scienceqa_peft.prompt=x"], ["datasets.scienceqa_peft.prompt: x"]),
        (["run.runner=runner_base"], ["run.runner: runner_base"]),
        (["run.feature_cache={dir: x, augmentations: 2}"], ["run.feature_cache.augmentations: 2"]),
        (["run.early_stopping=null"], ["run.early_stopping: None"]),
        (["model.model_type=flant5xxl"], ["model.model_type: flant5xxl"]),
        ([*tiny_options(benchmark_of("scienceqa"))], ["model.model_type: tiny"]),
    ],
)
def test_what_was_changed_is_named(options: list[str], changes: list[str], finished: Finished) -> None:
    assert list(only(finished("28", "scienceqa", 1, options=tuple(options))).changes) == changes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model.adapters.qformer.r=3"], "its adapters are those of no setting"),
        (["model.adapters.qformer.use_dora=true"], "its adapters are those of no setting"),
        (["model.adapters.train=[projection]"], "its adapters are those of no setting"),
        (["model.arch=blip2_t5"], "model.arch is blip2_t5"),
        (["run.evaluate=true"], "not a training run"),
    ],
)
def test_what_is_no_experiment(options: list[str], said: str, finished: Finished) -> None:
    folder = finished("28", "scienceqa", 1)
    line = json.loads((folder / "log.txt").read_text().splitlines()[0])
    for option in options:
        from omegaconf import OmegaConf

        line["config"] = OmegaConf.to_container(
            OmegaConf.merge(OmegaConf.create(line["config"]), OmegaConf.from_dotlist([option]))
        )
    (folder / "log.txt").write_text(json.dumps(line))
    assert said in str(read_run(folder))


def test_another_dataset_is_no_experiment(finished: Finished) -> None:
    folder = finished("28", "scienceqa", 1)
    text = (folder / "log.txt").read_text().replace("scienceqa_peft", "easy_vqa")
    (folder / "log.txt").write_text(text)
    assert read_run(folder) == "not an experiment of the paper: it trained on easy_vqa"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result/metrics_test.json", None, "unfinished: no result/metrics_test.json"),
        ("result/metrics_test.json", "{", "broken: result/metrics_test.json can't be read"),
        ("result/metrics_test.json", '{"agg_metrics": null}', "must be a number, found None"),
        ("result/metrics_test.json", '{"agg_metrics": true}', "must be a number, found True"),
        ("result/metrics_test.json", "[]", "must be a number"),
        ("log.txt", None, "unfinished or broken: no log.txt"),
        ("log.txt", "", "broken: the first line of log.txt can't be read"),
        ("log.txt", '{"config": {"run"', "broken: the first line of log.txt can't be read"),
        ("log.txt", '{"epoch": 0}', "not a training run"),
        ("log.txt", '{"config": {"run": {}, "model": {}, "datasets": []}}', "not a training run"),
    ],
)
def test_what_is_left_out_is_said(name: str, content: str | None, said: str, finished: Finished) -> None:
    good, bad = finished("28", "scienceqa", 80.0), finished("28", "scienceqa", 90.0, seed=1)
    (bad / name).unlink() if content is None else (bad / name).write_text(content)
    runs, left_out = read_results(good.parent)
    assert [run.folder for run in runs] == [good]
    assert len(left_out) == 1
    assert str(bad) in left_out[0]
    assert said in left_out[0]


def test_of_one_seed_the_newest_counts(finished: Finished) -> None:
    older, newer = finished("28", "scienceqa", 1.0), finished("28", "scienceqa", 2.0)
    other = finished("28", "scienceqa", 3.0, seed=1)
    runs, left_out = read_results(older.parent)
    assert {run.folder for run in runs} == {newer, other}
    assert left_out == [f"{older}: the same experiment and seed as the newer {newer}"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_results(tmp_path / "nothing")
