"""A user's mistake: one clear message, exit code 2, no traceback. Real processes, as a user would start them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

RUN = {
    "runner": "runner_peft",
    "task": "multiple_choice_vqa",
    "lr_sched": "linear_decay_lr",
    "init_lr": 1e-3,
    "max_epoch": 1,
    "batch_size_train": 2,
    "device": "cpu",
    "train_splits": ["train"],
    "test_splits": ["test"],
}
LORA = {"peft_type": "LORA", "sublayers": ["cross_attention"], "r": 2, "lora_alpha": 2}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A run on the tiny model and four records, in which nothing is wrong."""
    (tmp_path / "images").mkdir()
    records = []
    for number in range(4):
        Image.new("RGB", (64, 64), (number * 60, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        records.append({"image": f"{number}.png", "question": "is it red?", "answer": "yes", "choices": ["yes", "no"]})
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    processor = {"name": "peft_image", "image_size": 64}
    dataset = {
        "build_info": {
            "annotations": {split: {"storage": str(tmp_path / f"{split}.json")} for split in ("train", "test")},
            "images": {"storage": str(tmp_path / "images")},
        },
        "vis_processor": {"train": processor, "eval": processor},
    }
    model = {"arch": "blip2_t5_instruct_peft", "model_type": "tiny", "adapters": {"qformer": dict(LORA)}}
    run = {**RUN, "output_dir": str(tmp_path / "output")}
    return {"model": model, "datasets": {"instruct_json": dataset}, "run": run}


def lavis_peft(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "lavis_peft.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)


def _unknown_arch(config: dict[str, Any], folder: Path) -> None:
    config["model"]["arch"] = "blip2_t5_instrct_peft"


def _unknown_adapter_key(config: dict[str, Any], folder: Path) -> None:
    config["model"]["adapters"]["qformer"]["lora_alhpa"] = 8


def _misspelt_sublayer(config: dict[str, Any], folder: Path) -> None:
    config["model"]["adapters"]["qformer"]["sublayers"] = ["cross_atention"]


def _annotation_is_not_json(config: dict[str, Any], folder: Path) -> None:
    (folder / "train.json").write_text('[{"image": "0.png", ')


def _image_is_missing(config: dict[str, Any], folder: Path) -> None:
    (folder / "images" / "2.png").unlink()


def _image_is_truncated(config: dict[str, Any], folder: Path) -> None:
    path = folder / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:60])


def _foreign_checkpoint(config: dict[str, Any], folder: Path) -> None:
    torch.save({"model": {"visual_encoder.stem": torch.zeros(2)}}, folder / "other.pth")
    config["model"] |= {"load_finetuned": True, "finetuned": str(folder / "other.pth")}


def _checkpoint_that_runs_code(config: dict[str, Any], folder: Path) -> None:
    torch.save({"model": Touch(str(folder / "touched"))}, folder / "evil.pth")
    config["model"] |= {"load_finetuned": True, "finetuned": str(folder / "evil.pth")}


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


CASES: dict[Callable[[dict[str, Any], Path], None], tuple[str, ...]] = {
    _unknown_arch: ("model.arch", "blip2_t5_instrct_peft", "did you mean 'blip2_t5_instruct_peft'"),
    _unknown_adapter_key: ("model.adapters.qformer.lora_alhpa", "did you mean 'lora_alpha'"),
    _misspelt_sublayer: ("model.adapters.qformer.sublayers", "cross_atention", "did you mean 'cross_attention'"),
    _annotation_is_not_json: ("train.json", "JSON"),
    _image_is_missing: ("train.json", "2.png"),
    _image_is_truncated: ("train.json", "2.png"),
    _foreign_checkpoint: ("other.pth", "visual_encoder.stem"),
    _checkpoint_that_runs_code: ("evil.pth", "code"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_a_mistake_is_named_and_ends_with_exit_code_2(
    case: Callable[[dict[str, Any], Path], None], config: dict[str, Any], tmp_path: Path
) -> None:
    case(config, tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    result = lavis_peft("train", "--cfg-path", path)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.rindex("Error:") :]
    for part in CASES[case]:
        assert part in message, message
    assert not (tmp_path / "touched").exists()


def test_a_run_without_a_mistake_trains(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    result = lavis_peft("train", "--cfg-path", path)
    assert result.returncode == 0, result.stderr[-2000:]
    (run,) = (tmp_path / "output").iterdir()
    assert json.loads((run / "result" / "metrics_test.json").read_text())["total"] == 4


@pytest.mark.parametrize("command", ["train", "evaluate", "inspect"])
def test_a_missing_config_is_named(command: str, tmp_path: Path) -> None:
    result = lavis_peft(command, "--cfg-path", tmp_path / "none.yaml")
    assert result.returncode == 2
    assert "none.yaml" in result.stderr
    assert "Traceback" not in result.stderr
