"""A real run on the tiny model, made once, and its files."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

RUN = {
    "runner": "runner_peft",
    "task": "multiple_choice_vqa",
    "lr_sched": "linear_decay_lr",
    "init_lr": 1e-3,
    "max_epoch": 2,
    "batch_size_train": 2,
    "device": "cpu",
    "train_splits": ["train"],
    "valid_splits": ["val"],
    "test_splits": ["test"],
    "tensorboard": False,
}
BUDGET = {"init_r": 4, "target_r": 2, "tinit": 0, "tfinal": 1, "deltaT": 1}
ADALORA = {"peft_type": "ADALORA", "sublayers": ["self_attention"], "lora_alpha": 4, **BUDGET}


def write_run(folder: Path, **run: Any) -> Path:
    """Write a run config on the tiny model and four pictures.

    Args:
        folder: Gets the pictures, the annotations and ``run.yaml``, whose path is returned.
        run: Keys of the `run` section.
    """
    import yaml
    from PIL import Image

    records = []
    for number in range(4):
        Image.new("RGB", (64, 64), (number * 60, 0, 0)).save(folder / f"{number}.png")
        records.append({"image": f"{number}.png", "question": "is it red?", "answer": "yes", "choices": ["yes", "no"]})
    (folder / "all.json").write_text(json.dumps(records))
    processor = {"name": "peft_image", "image_size": 64}
    dataset = {
        "build_info": {
            "annotations": {split: {"storage": str(folder / "all.json")} for split in ("train", "val", "test")},
            "images": {"storage": str(folder)},
        },
        "vis_processor": {"train": processor, "eval": processor},
    }
    model = {"arch": "blip2_t5_instruct_peft", "model_type": "tiny", "adapters": {"qformer": dict(ADALORA)}}
    config = {
        "model": model,
        "datasets": {"instruct_json": dataset},
        "run": {**RUN, "output_dir": str(folder / "output"), **run},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def _lavis_put_back() -> Iterator[None]:
    """LAVIS as it was before a command ran in this process, which puts some of its own names in LAVIS's place."""
    import lavis_peft

    lavis_peft.register()
    import lavis.runners
    from lavis.common import config, dist_utils, logger

    places = [
        (dist_utils, "init_distributed_mode"),
        (logger.SmoothedValue, "synchronize_between_processes"),
        (config, "Config"),
        (lavis.runners, "RunnerBase"),
        (lavis.runners.runner_base, "RunnerBase"),
        (sys, "excepthook"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    yield
    for (owner, name), value in zip(places, before, strict=True):
        setattr(owner, name, value)


@pytest.fixture
def lavis_put_back() -> Iterator[None]:
    """For tests that run commands in their own process."""
    with _lavis_put_back():
        yield


@dataclass(frozen=True)
class TrainedRun:
    """A run that is done.

    Args:
        config: Its YAML.
        runner: Its runner, in this process.
        checkpoint: Its newest checkpoint.
        adapter: Its exported adapter, safetensors.
        rest: What else it trained, safetensors.
    """

    config: Path
    runner: Any
    checkpoint: Path
    adapter: Path
    rest: Path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Two epochs with AdaLoRA on the tiny model, and the export of its checkpoint."""
    from lavis_peft.cli.export import export
    from lavis_peft.cli.running import build_runner

    folder = tmp_path_factory.mktemp("trained")
    config = write_run(folder)
    with _lavis_put_back():
        runner = build_runner(str(config), [], True)
        runner.train()
        checkpoint = Path(runner.output_dir) / "checkpoint_1.pth"
        export(str(config), [], str(checkpoint), folder / "exported")
    adapter = folder / "exported" / "qformer" / "adapter_model.safetensors"
    return TrainedRun(config, runner, checkpoint, adapter, folder / "exported" / "trained.safetensors")
