"""Composed run configs: complete, valid, and what the setting says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.experiments.compose import as_yaml, compose, origin, tiny_options
from lavis_peft.experiments.settings import benchmark_of, benchmarks, setting_of, settings
from lavis_peft.runners.config_file import read_run_file

#: Every setting on one benchmark, and one setting of each kind on the others.
PAIRS = [(key, "scienceqa") for key in settings()] + [
    (key, name) for key in ("28", "61", "full-t5", "adalora-vicuna") for name in list(benchmarks())[1:]
]


def test_every_experiment_is_a_valid_run_config(prepared: Callable[..., Path]) -> None:
    import lavis_peft

    lavis_peft.register()
    import transformers

    from lavis_peft.runners.config import check_config

    for key, name in PAIRS:
        setting, benchmark = setting_of(key), benchmark_of(name)
        if setting.llm == "vicuna" and not hasattr(transformers, "LlamaForCausalLM"):
            continue
        config = compose(setting, benchmark, data=prepared(benchmark.builder))
        check_config(config, where=f"{key} on {name}")  # names every problem


def test_a_config_has_everything_of_its_setting(prepared: Callable[..., Path]) -> None:
    folder = prepared("iconqa_peft")
    config = compose(setting_of("38"), benchmark_of("iconqa"), data=folder, seed=7)
    run = {"init_lr": 2e-5, "max_epoch": 10, "batch_size_train": 8, "accum_grad_iters": 2, "weight_decay": 0.05}
    run |= {"seed": 7, "output_dir": "output/paper/iconqa/38/seed_7", "lr_sched": "linear_decay_lr", "amp": True}
    run |= {"task": "multiple_choice_vqa", "early_stopping": 3, "min_lr": 0}
    assert {key: config.run[key] for key in run} == run
    assert config.model.arch == "blip2_vicuna_instruct_peft"
    assert config.model.adapters.qformer == "full"
    assert config.datasets.iconqa_peft.build_info.annotations.val.storage == str(folder / "val.json")


def test_overrides_come_last(prepared: Callable[..., Path]) -> None:
    options = ("run.max_epoch=2", "model.adapters.qformer.r=3", "run.output_dir=here")
    setting, benchmark = setting_of("28"), benchmark_of("scienceqa")
    config = compose(setting, benchmark, data=prepared(), output="there", options=options)
    assert (config.run.max_epoch, config.model.adapters.qformer.r, config.run.output_dir) == (2, 3, "here")
    assert setting.adapters["qformer"]["r"] == 8
    with pytest.raises(ConfigError, match="experiment 28.*no dataset 'iconqa_peft'"):
        compose(setting, benchmark, options=("datasets.iconqa_peft.prompt=x",))


def test_the_text_is_a_run_config_that_says_what_it_is(tmp_path: Path) -> None:
    setting, benchmark = setting_of("60"), benchmark_of("vizwiz")
    options = tiny_options(benchmark)
    config = compose(setting, benchmark, options=options)
    text = as_yaml(config, setting, benchmark, options)
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# Purpose: experiment 60 of Kim et al. 2024: Q-Former LoRA (all, Vicuna-7B), r 8, on VizWiz-VQA."
    assert [line.split()[1] for line in head[1:]] == ["Needs:", "Command:", "Learning", "Changed:", "Changed:"]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert OmegaConf.to_container(read_run_file(path)[0]) == OmegaConf.to_container(config)


@pytest.mark.parametrize(
    ("key", "dataset", "said"),
    [
        ("1", "iconqa", "as published with the research code."),
        ("1", "vizwiz", "OUR CHOICE, those of ScienceQA; none are published for VizWiz-VQA."),
        ("1", "flickr30k", "OUR CHOICE, those of ScienceQA but with 5 epochs; none are published for Flickr30k."),
        ("full-t5", "scienceqa", "OUR CHOICE; none are published for this experiment."),
        ("adalora-t5", "iconqa", "OUR CHOICE; none are published for this experiment."),
    ],
)
def test_whose_choice_it_is(key: str, dataset: str, said: str) -> None:
    assert origin(setting_of(key), benchmark_of(dataset)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "must describe scienceqa_peft, and describes: iconqa_peft"),
        ("datasets: {}", "describes: "),
        ("datasets: {scienceqa_peft: {}}\nrun: {max_epoch: 1}", "no section `datasets` alone"),
        ("a: [", "isn't YAML"),
    ],
)
def test_data_of_another_kind(text: str | None, said: str, prepared: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(setting_of("1"), benchmark_of("scienceqa"), data=prepared("iconqa_peft", text))


def test_data_that_was_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no dataset.yaml.*lavis-peft prepare scienceqa"):
        compose(setting_of("1"), benchmark_of("scienceqa"), data=tmp_path)
