"""Run configs of the research code become the plugin's; no LAVIS here."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_peft import research
from lavis_peft.errors import ConfigError
from lavis_peft.research import ARCHS
from lavis_peft.research.model import SWITCHES
from lavis_peft.research.translate import Translation, translate
from lavis_peft.runners.config_file import read_run_file
from lavis_peft.runners.spec import RunSpec, parse_run

Config = Callable[..., dict[str, Any]]
ALL = {"peft_type": "LORA", "sublayers": ["self_attention", "cross_attention", "ffn"], "r": 8, "lora_alpha": 8}


def adapters(config: dict[str, Any]) -> dict[str, Any]:
    return translate(config).config["model"]["adapters"]


def problems(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        translate(config)
    return caught.value.problems


def test_its_six_models() -> None:
    assert sorted(ARCHS) == [
        "blip2_t5_instruct_lora",
        "blip2_t5_instruct_qformer_llm_lora",
        "blip2_t5_instruct_qformer_lora",
        "blip2_vicuna_instruct_lora",
        "blip2_vicuna_instruct_qformer_llm_lora",
        "blip2_vicuna_instruct_qformer_lora",
    ]


@pytest.mark.parametrize("family", ["t5", "vicuna"])
def test_each_kind_trains_what_it_trained(family: str, research_config: Config) -> None:
    llm = {"peft_type": "LORA", "sublayers": ["attention", "ffn"], "r": 8, "lora_alpha": 8}
    qformer = {**ALL, "lora_dropout": 0}
    wanted = {
        "lora": {"qformer": "full", "llm": llm},
        "qformer_lora": {"qformer": qformer, "llm": "frozen"},
        "qformer_llm_lora": {"qformer": qformer, "llm": llm},
    }
    for kind, section in wanted.items():
        model = translate(research_config(f"blip2_{family}_instruct_{kind}")).config["model"]
        assert model["arch"] == f"blip2_{family}_instruct_peft"
        assert model["adapters"] == section


@pytest.mark.parametrize(("apply", "words"), [("attn", ["attention"]), ("ffn", ["ffn"]), ("all", ["attention", "ffn"])])
def test_the_language_models_sublayers(apply: str, words: list[str], research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora", llm_lora_apply=apply, llm_lora_r=2)
    assert adapters(config)["llm"] == {"peft_type": "LORA", "sublayers": words, "r": 2, "lora_alpha": 8}


@pytest.mark.parametrize(("switch", "word"), list(SWITCHES.items()))
def test_each_switch_is_a_word(switch: str, word: str, research_config: Config) -> None:
    off = dict.fromkeys(SWITCHES, False)
    found = adapters(research_config("blip2_t5_instruct_qformer_lora", **{**off, switch: True}))
    assert found["qformer"]["sublayers"] == [word]


def test_its_defaults_where_a_key_is_missing(research_config: Config) -> None:
    unset = dict.fromkeys(["lora_r", "lora_alpha", "lora_dropout", "llm_lora_r", "llm_lora_apply", "ffn_lora"])
    translation = translate(research_config("blip2_t5_instruct_qformer_llm_lora", **unset))
    found = translation.config["model"]["adapters"]
    assert found["qformer"] == {
        **ALL,
        "sublayers": ["self_attention", "cross_attention"],
        "lora_alpha": 16,
        "lora_dropout": 0.05,
    }
    assert found["llm"] == {"peft_type": "LORA", "sublayers": ["attention"], "r": 8, "lora_alpha": 8}
    assert "model.lora_alpha: not set; 16 is its code's default" in translation.notes


def test_no_switch_at_all_freezes_the_qformer(research_config: Config) -> None:
    translation = translate(research_config("blip2_t5_instruct_qformer_lora", **dict.fromkeys(SWITCHES, False)))
    assert translation.config["model"]["adapters"] == {"qformer": "frozen", "llm": "frozen"}
    assert any("nothing in the Q-Former trains" in note for note in translation.notes)


def test_keys_that_its_class_never_read_are_left_out(research_config: Config) -> None:
    changes = {"lora_r": 4, "ffn_lora": True, "few_shot_prob": 0.5}
    translation = translate(research_config("blip2_vicuna_instruct_lora", **changes))
    assert not set(changes) & set(translation.config["model"])
    assert translation.config["model"]["adapters"]["qformer"] == "full"
    assert [line.split()[0] for line in translation.dropped][:3] == [f"model.{key}" for key in changes]


def test_its_vicuna_is_version_1_3(research_config: Config) -> None:
    config = research_config("blip2_vicuna_instruct_lora")
    assert translate(config).config["model"]["llm_model"] == "lmsys/vicuna-7b-v1.3"
    config["model"]["llm_model"] = "./mine"
    assert translate(config).config["model"]["llm_model"] == "./mine"
    assert "llm_model" not in translate(research_config("blip2_t5_instruct_lora")).config["model"]


def test_every_problem_is_named_as_it_stands_in_the_file(research_config: Config) -> None:
    changes = {"lora_r": 0, "llm_lora_apply": "both", "ffn_lora": 1, "lora_droput": 0.1, "adapters": {}}
    config = research_config("blip2_t5_instruct_qformer_llm_lora", run={"disable_early_stopping": "no"}, **changes)
    config["datasets"]["scienceqa"] |= {"train_samples_portion": 0, "shuffel_images": True}
    found = problems(config)
    for text in (
        "model.lora_r: found 0; give a whole number above 0",
        "model.llm_lora_apply: found 'both'; give one of attn, ffn, all",
        "model.ffn_lora: found 1; give true or false",
        "model.lora_droput: unknown key (did you mean 'lora_dropout'?)",
        "model.adapters: belongs to blip2_t5_instruct_peft",
        "datasets.scienceqa.train_samples_portion: found 0; give all, or a whole number above 0",
        "datasets.scienceqa.shuffel_images: unknown key (did you mean 'shuffle_images'?)",
        "run.disable_early_stopping: must be true or false, found 'no'",
    ):
        assert any(problem.startswith(text) for problem in found), text
    assert len(found) == 8


def test_the_run_section(research_config: Config) -> None:
    translation = translate(research_config("blip2_t5_instruct_lora", run={"train_dataset_ratios": {"a": 1}}))
    run = translation.config["run"]
    assert (run["runner"], run["task"], run["early_stopping"]) == ("runner_peft", "multiple_choice_vqa", 3)
    assert [line.split()[0] for line in translation.dropped] == [
        "run.warmup_lr",
        "run.warmup_steps",
        "run.inference_method",
        "run.train_dataset_ratios",
    ]
    wanted = RunSpec(
        task="multiple_choice_vqa",
        lr_sched="linear_decay_lr",
        init_lr=1e-4,
        max_epoch=15,
        batch_size_train=16,
        early_stopping=3,
        batch_size_eval=1,
        num_workers=4,
        amp=True,
        device="cuda",
        valid_splits=("val",),
        test_splits=("test",),
    )
    assert parse_run(run) == wanted


@pytest.mark.parametrize(
    ("changes", "patience"),
    [
        ({}, 3),
        ({"disable_early_stopping": False}, 3),
        ({"disable_early_stopping": True}, None),
        ({"valid_splits": []}, None),
        ({"early_stopping": 0}, 0),
        ({"runner": "runner_iter"}, None),
    ],
)
def test_early_stopping_is_on_unless_it_is_off(
    changes: dict[str, Any], patience: int | None, research_config: Config
) -> None:
    run = translate(research_config("blip2_t5_instruct_lora", run=changes)).config["run"]
    assert run.get("early_stopping") == patience
    assert "disable_early_stopping" not in run
    assert run["runner"] == ("runner_peft_iter" if "runner" in changes else "runner_peft")


@pytest.mark.parametrize(
    ("dataset", "ours", "task"),
    [
        ("scienceqa", "scienceqa_peft", "multiple_choice_vqa"),
        ("iconqa", "iconqa_peft", "multiple_choice_vqa"),
        ("vizwiz", "vizwiz_peft", "vqa_accuracy_peft"),
        ("flickr30k_instruct", "flickr30k_peft", "captioning_peft"),
    ],
)
def test_its_datasets_and_tasks(dataset: str, ours: str, task: str, research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora", dataset=dataset)
    config["datasets"][dataset]["train_samples_portion"] = 500
    translated = translate(config).config
    assert list(translated["datasets"]) == [ours]
    assert translated["run"]["task"] == task
    section = translated["datasets"][ours]
    assert section["max_samples"] == {"train": 500}
    assert "train_samples_portion" not in section
    assert section["vis_processor"]["train"]["name"] == "blip2_image_train"


def test_vizwiz_generates_as_it_did(research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora", dataset="vizwiz", run={"num_beams": 5})
    translation = translate(config)
    run = translation.config["run"]
    assert (run["num_beams"], run["max_len"], run["min_len"]) == (5, 10, 1)
    assert any("its vizwiz asks the bare question" in note for note in translation.notes)
    config["run"]["prompt"] = "Question: {}"
    assert problems(config) == [
        "run.prompt: was for scoring alone; here datasets.vizwiz_peft.prompt is for training and scoring"
    ]


def test_other_peoples_datasets_and_tasks_stay(research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora", dataset="instruct_json", run={"task": "multiple_choice_vqa"})
    assert translate(config).config["datasets"] == config["datasets"]


def build_info(config: dict[str, Any]) -> dict[str, Any]:
    (section,) = translate(config).config["datasets"].values()
    return section["build_info"]


def test_the_paths_of_its_own_defaults(research_config: Config) -> None:
    found = build_info(research_config("blip2_t5_instruct_lora"))
    assert found["annotations"]["val"] == {"storage": "/input/scienceqa/scienceqa_val.json"}
    assert found["images"] == {"storage": "/input"}
    found = build_info(research_config("blip2_t5_instruct_lora", dataset="iconqa"))
    assert found["annotations"]["train"] == {"storage": "/input/iconqa/annotations/train.json"}
    assert found["images"] == {"storage": "/input/iconqa"}


def test_paths_that_the_config_gives(research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora", dataset="iconqa")
    folders = {split: {"storage": f"/d/{split}/choose_txt/"} for split in ("train", "val", "test")}
    given = {"annotations": {"val": {"storage": "/d/v.json"}}, "images": folders}
    config["datasets"]["iconqa"]["build_info"] = given
    found = build_info(config)
    assert [found["annotations"][split]["storage"] for split in ("train", "val")] == [
        "/input/iconqa/annotations/train.json",
        "/d/v.json",
    ]
    assert found["images"] == {"storage": "/d"}
    folders["val"]["storage"] = "/e/val/choose_txt"
    (problem,) = problems(config)
    assert problem.startswith("datasets.iconqa.build_info.images: the splits' storage must all name one folder")
    # As `prepare` writes it.
    own = {"annotations": {"train": {"storage": "t.json"}}, "images": {"storage": "/p"}}
    config["datasets"]["iconqa"]["build_info"] = own
    assert build_info(config) == own


def test_a_file_is_translated_where_it_is_read_and_that_is_said(
    research_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(research_config("blip2_t5_instruct_qformer_lora")))
    with caplog.at_level(logging.WARNING):
        config, pairs = read_run_file(path, ["model.lora_r=2", "run.max_epoch=3", "run.early_stopping=0"])
        read_run_file(path)
    assert config.model.adapters.qformer.r == 2
    assert (config.run.max_epoch, config.run.early_stopping, pairs[0]) == (3, 0, "model.lora_r=2")
    (said,) = [record.message for record in caplog.records]
    assert "is a run config of the research code, translated" in said
    assert "run.inference_method (its task ranks the choices whatever this says)" in said
    with pytest.raises(ConfigError, match=r"old\.yaml: model\.lora_r: found 'x'; give a whole number above 0"):
        read_run_file(path, ["model.lora_r=x"])


def test_other_configs_are_left_alone() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"model": {"arch": "blip2_t5_instruct_peft", "lora_r": 1}, "datasets": {}, "run": {}})
    assert research.adopted(config, "run.yaml") is config


def test_a_translation_is_a_value(research_config: Config) -> None:
    config = research_config("blip2_t5_instruct_lora")
    assert translate(config) == translate(config) != Translation({}, (), ())
