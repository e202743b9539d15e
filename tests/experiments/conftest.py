"""Prepared data and finished runs of the paper's experiments, made in a temporary folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lavis_peft.experiments.compose import compose
from lavis_peft.experiments.settings import benchmark_of, setting_of
from lavis_peft.paths import plugin_configs_dir


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a dataset.yaml as `lavis-peft prepare` writes it, for a benchmark's builder."""

    def make(builder: str = "scienceqa_peft", text: str | None = None) -> Path:
        files = {split: {"storage": str(tmp_path / f"{split}.json")} for split in ("train", "val", "test")}
        build_info = {"annotations": files, "images": {"storage": str(tmp_path)}}
        content = yaml.safe_dump({"datasets": {builder: {"build_info": build_info}}})
        (tmp_path / "dataset.yaml").write_text(content if text is None else text)
        return tmp_path

    return make


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Write what a finished run leaves: the config, defaults filled in, in log.txt's first line, and its metrics."""
    count = iter(range(1000))

    def make(key: str, dataset: str, value: object, seed: int = 42, options: tuple[str, ...] = (), **run: Any) -> Path:
        config = compose(setting_of(key), benchmark_of(dataset), seed=seed, options=options)
        folder = plugin_configs_dir()
        model = OmegaConf.load(folder / "models" / f"{config.model.arch}_{config.model.model_type}.yaml")
        data = OmegaConf.load(folder / "datasets" / f"{dataset}_peft" / "defaults.yaml")
        recorded: Any = OmegaConf.to_container(OmegaConf.merge(model, data, config))
        recorded["run"] |= {"evaluate": False, "distributed": False, **run}
        number = next(count)
        made = tmp_path / "results" / str(number)
        (made / "result").mkdir(parents=True)
        (made / "log.txt").write_text(json.dumps({"config": recorded}) + '\n{"epoch": 0}\n')
        metrics = made / "result" / "metrics_test.json"
        metrics.write_text(json.dumps({"agg_metrics": value}))
        os.utime(metrics, (number, number))  # a later one is a newer one
        return made

    return make
