"""LAVIS's Config with the plugin's checks: every name is looked up, every override takes effect."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lavis_peft
from lavis_peft.errors import ConfigError

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.runners.config import RunConfig, gives_weights  # noqa: E402

RunFile = Callable[..., Path]


def load(path: Path, *options: str) -> RunConfig:
    return RunConfig(Namespace(cfg_path=str(path), options=list(options)))


def problems(path: Path, *options: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, *options)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_a_good_config_and_what_lavis_scripts_read_from_it(run_file: RunFile) -> None:
    cfg = load(run_file(seed=None, evaluate=None), "run.max_epoch=7")
    assert (cfg.run_cfg.max_epoch, cfg.run_cfg.seed, cfg.run_cfg.evaluate) == (7, 42, False)
    assert cfg.model_cfg.arch == "blip2_t5_instruct_peft"
    assert cfg.datasets_cfg.instruct_json.data_type == "images"


def test_an_overridden_model_type_chooses_the_default_yaml(run_file: RunFile) -> None:
    path = run_file()
    assert "flanxl" in load(path).model_cfg.pretrained
    assert "flanxxl" in load(path, "model.model_type=flant5xxl").model_cfg.pretrained


def test_an_overridden_dataset_type_chooses_the_default_yaml(
    run_file: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = registry.get_builder_class("instruct_json")
    other = tmp_path / "other.yaml"
    default = Path(builder.DATASET_CONFIG_DICT["default"]).read_text()
    other.write_text(default.replace("Question: {question}", "Other: {question}"))
    monkeypatch.setitem(builder.DATASET_CONFIG_DICT, "other", str(other))
    path = run_file()
    assert load(path).datasets_cfg.instruct_json.prompt.startswith("Question")
    assert load(path, "datasets.instruct_json.type=other").datasets_cfg.instruct_json.prompt.startswith("Other")


def test_lavis_older_form_of_overrides(run_file: RunFile) -> None:
    assert load(run_file(), "run.max_epoch", "5").run_cfg.max_epoch == 5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.arch=blip2_t5_instruct_pefd", "model.arch: unknown name 'blip2_t5_instruct_pefd' (did you mean"),
        ("model.model_type=flant5", "model.model_type: unknown type 'flant5' (did you mean"),
        ("datasets.instruct_json.type=x", "datasets.instruct_json.type: unknown type 'x'"),
        ("run.task=multiple_choice", "run.task: unknown name 'multiple_choice' (did you mean 'multiple_choice_vqa'?)"),
        ("run.runner=runner_pefd", "run.runner: unknown name 'runner_pefd' (did you mean 'runner_peft'?)"),
        ("run.lr_sched=linear_decay", "run.lr_sched: unknown name 'linear_decay' (did you mean 'linear_decay_lr'?)"),
        ("run.epochs=3", "run.epochs: unknown key"),
        ("run.init_lr=null", "run.init_lr: needed for training"),
    ],
)
def test_a_name_that_nothing_has(option: str, message: str, run_file: RunFile) -> None:
    found = problems(run_file(), option)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_all_problems_of_a_config_come_at_once(run_file: RunFile) -> None:
    assert len(problems(run_file(), "run.task=x", "run.runner=runner_peft", "model.arch=y", "run.seed=z")) == 3


def test_every_section_is_checked_by_what_reads_it(run_file: RunFile) -> None:
    options = ["model.adapters.qformer.r=0", "datasets.instruct_json.promt=x", "run.open_ended=x", "run.min_lr=-1"]
    found = problems(run_file(), *options)
    assert len(found) == 4
    keys = [line.partition(": ")[0] for line in found]
    assert keys == ["model.adapters.qformer.r", "datasets.instruct_json.promt", "run.min_lr", "run.open_ended"]


def test_an_unknown_dataset(run_file: RunFile) -> None:
    path = run_file()
    path.write_text(path.read_text().replace("instruct_json:", "instruct_jsno:"))
    assert problems(path)[0].startswith("datasets: unknown name 'instruct_jsno' (did you mean 'instruct_json'?)")


def test_evaluation_needs_no_training_keys(run_file: RunFile) -> None:
    run = {"max_epoch": None, "init_lr": None, "batch_size_train": None, "lr_sched": None}
    assert load(run_file(**run)).run_cfg.evaluate is False
    assert load(run_file(max_epoch=None, evaluate=True)).run_cfg.evaluate is True
    assert problems(run_file(max_epoch=None)) == ["run.max_epoch: needed for training"]


def test_our_models_get_our_runner_and_others_lavis_default(run_file: RunFile) -> None:
    assert load(run_file(runner=None)).run_cfg.runner == "runner_peft"
    path = run_file(runner=None, my_own_key=1)
    text = path.read_text().replace("arch: blip2_t5_instruct_peft", "arch: blip2_t5")
    path.write_text(text.replace("model_type: flant5xl", "model_type: pretrain_flant5xl"))
    cfg = load(path)
    assert (cfg.run_cfg.runner, cfg.run_cfg.my_own_key) == ("runner_base", 1)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], False),
        (["model.load_pretrained=true"], True),
        (["model.load_pretrained=true", "model.pretrained=''"], False),
        (["model.load_finetuned=true", "model.finetuned=x.pth"], True),
        (["model.finetuned=x.pth"], False),
        (["run.resume_ckpt_path=x.pth"], True),
    ],
)
def test_whether_a_config_names_weights(options: list[str], given: bool, run_file: RunFile) -> None:
    assert gives_weights(load(run_file(), *options)) is given


def test_a_task_may_declare_run_keys(run_file: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = registry.get_task_class("multiple_choice_vqa")
    path = run_file(my_key=3)
    assert problems(path)[0].startswith("run.my_key: unknown key")
    monkeypatch.setattr(task, "run_keys", ("my_key",), raising=False)
    assert load(path).run_cfg.my_key == 3
