"""A run config and a checkpoint of the research code through training, scoring and merging."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import lavis_peft

lavis_peft.register()

from lavis_peft.cli import main  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.cli.running import build_runner  # noqa: E402
from lavis_peft.datasets.spec import InstructJsonSpec  # noqa: E402
from lavis_peft.errors import ConfigError, DataError  # noqa: E402
from lavis_peft.models.spec import ModelSpec  # noqa: E402
from lavis_peft.research import ARCHS  # noqa: E402
from lavis_peft.research.data import DATASETS  # noqa: E402
from lavis_peft.research.data import OWN_KEYS as OWN_DATA_KEYS  # noqa: E402
from lavis_peft.research.model import OWN_KEYS as OWN_MODEL_KEYS  # noqa: E402
from lavis_peft.runners.config import check_config  # noqa: E402
from lavis_peft.runners.config_file import read_run_file  # noqa: E402

ResearchRun = Callable[..., Path]


def their_names(path: Path, target: Path) -> None:
    """Write a checkpoint of the plugin's as the research code would have."""
    content = torch.load(path, weights_only=True)
    state = {}
    for name, tensor in content["model"].items():
        if name.startswith("Qformer."):
            name = name.replace(".lora_A.default.weight", ".lora_A").replace(".lora_B.default.weight", ".lora_B")
        state[name.replace("t5_model.", "t5_model.base_model.model.")] = tensor
    torch.save({"model": state, "epoch": content["epoch"], "optimizer": {}}, target)


def test_train_evaluate_and_merge(research_run: ResearchRun, tmp_path: Path) -> None:
    path = str(research_run("blip2_t5_instruct_qformer_llm_lora"))
    runner = build_runner(path, ["model.lora_r=2"], training=True)
    assert runner.model.adapters.qformer.options["r"] == 2
    assert runner.spec.patience == 3
    sample = runner.datasets["scienceqa_peft"]["train"][1]
    assert sample["text_output"] == "(b) blue"
    prompt = "Context: {look  at it} Question: {what color is the picture ?} Options: {(a) red\n(b) blue\n} Answer:"
    assert sample["text_input"] == prompt
    trained = runner.train()["test"]
    folder = Path(runner.output_dir)
    log = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert log[0]["config"]["model"]["arch"] == "blip2_t5_instruct_peft"
    losses = [line["train_loss"] for line in log if "train_loss" in line]
    assert len(losses) == 2
    assert losses[1] < losses[0]

    old = tmp_path / "old.pth"
    their_names(folder / "checkpoint_best.pth", old)
    for options in ([f"run.resume_ckpt_path={old}"], ["model.load_finetuned=true", f"model.finetuned={old}"]):
        scored = build_runner(path, ["model.lora_r=2", *options], training=False).evaluate(skip_reload=True)["test"]
        assert scored == trained
    merged = ["merge", "--cfg-path", path, "--checkpoint", str(old), "--output", str(tmp_path / "merged"), "--json"]
    found = CliRunner().invoke(main, [*merged, "--options", "model.lora_r=2"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["layers"] == 4 * 2 + 2 * 4 + 4 * 4 + 2 * 3 * 2 + 4 * 3


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_every_name_and_key_is_known_here(
    dataset: str, research_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "old.yaml"
    for arch in ARCHS:
        config = research_config(arch, dataset, run={"num_beams": 5, "max_len": 30, "min_len": 8})
        path.write_text(yaml.safe_dump(config))
        check_config(read_run_file(path)[0], where="old.yaml")


def test_the_plugins_own_keys_may_stand_in_an_old_config() -> None:
    model = {item.name for item in fields(ModelSpec)} - {"llm", "adapters"}
    assert model <= set(OWN_MODEL_KEYS)
    data = {item.name for item in fields(InstructJsonSpec)} - {"annotations", "images"}
    assert data <= {*OWN_DATA_KEYS, "vis_processor", "text_processor"}


def test_a_misspelt_model_of_its(research_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    config = research_config("blip2_t5_instruct_qformer_lora")
    config["model"]["arch"] = "blip2_t5_instruct_qformr_lora"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"did you mean 'blip2_t5_instruct_qformer_lora'\?"):
        check_config(read_run_file(path)[0])


def test_a_missing_annotation_file_names_the_command_that_writes_it(research_run: ResearchRun, tmp_path: Path) -> None:
    path = research_run("blip2_t5_instruct_qformer_lora")
    config = yaml.safe_load(path.read_text())
    config["datasets"]["scienceqa"]["build_info"]["annotations"]["val"]["storage"] = str(tmp_path / "none.json")
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"no file '.*none\.json'.*; `lavis-peft prepare scienceqa` writes it"):
        build_runner(str(path), [], training=True)
