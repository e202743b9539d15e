"""What LAVIS's train.py and evaluate.py do, for where there is no LAVIS checkout."""

import contextlib
import json
import random
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lavis_peft.errors import ConfigError


def run(cfg_path: str, options: Sequence[str], training: bool) -> dict[str, Any]:
    """Do what train.py or evaluate.py does.

    Args:
        cfg_path: The run config.
        options: Overrides.
        training: Train, or score the test splits.

    Returns:
        ``output_dir``, and the metrics of each test split; nothing on other than the main process.

    Raises:
        UserError: As :func:`build_runner`, and whatever the run finds wrong.
    """
    # LAVIS prints its progress; standard output is for results.
    with contextlib.redirect_stdout(sys.stderr):
        cfg = start(cfg_path, options, training)
        result = _finished(cfg) if training else None
        if result is None:
            runner = _build(cfg, training)
            metrics = (runner.train() if training else runner.evaluate(skip_reload=True)) or {}
            result = {"output_dir": runner.output_dir, **metrics}

        from lavis_peft.runners import distributed

        main = distributed.is_main()
        distributed.shutdown()
    return result if main else {}


def build_runner(cfg_path: str, options: Sequence[str], training: bool) -> Any:
    """Check a run config and build its task, datasets, model and runner.

    Args:
        cfg_path: The run config.
        options: Overrides.
        training: Whether the run is to train, or only to score.

    Returns:
        The runner.

    Raises:
        ConfigError: Something in the config is wrong; raised before any weight is read where it can be known by then.
    """
    return _build(start(cfg_path, options, training), training)


def start(cfg_path: str, options: Sequence[str], training: bool) -> Any:
    """Check a run config, and join the other processes of the run.

    Args:
        cfg_path: The run config.
        options: Overrides.
        training: Whether the run is to train, or only to score.

    Returns:
        LAVIS's config.

    Raises:
        ConfigError: Something in the config is wrong.
    """
    from lavis_peft import register
    from lavis_peft.runners.config_file import read_run_file

    read_run_file(cfg_path, options)  # before the seconds that LAVIS's import takes
    register()
    from lavis.common.logger import setup_logger

    from lavis_peft.runners import distributed, hooks
    from lavis_peft.runners.config import RunConfig

    hooks.install()
    cfg = RunConfig(Namespace(cfg_path=cfg_path, options=list(options)))
    if _is_ours(cfg):
        _check_purpose(cfg, training)
    distributed.init_distributed_mode(cfg.run_cfg)
    setup_logger()
    cfg.pretty_print()
    return cfg


def _finished(cfg: Any) -> dict[str, Any] | None:
    """What a run that is to be gone on with came to, if it is done: known before data and weights are read."""
    from omegaconf import OmegaConf

    from lavis_peft.runners.agreement import agreed
    from lavis_peft.runners.config import run_spec
    from lavis_peft.runners.finished import finished_metrics
    from lavis_peft.runners.spec import AUTO
    from lavis_peft.runners.whole import newest_run

    if not _is_ours(cfg):
        return None
    spec = run_spec(cfg.run_cfg)
    if spec.resume_ckpt_path != AUTO or spec.evaluate:
        return None

    def look() -> dict[str, Any] | None:
        folder = newest_run(spec.output_dir)
        config = OmegaConf.to_container(cfg.config, resolve=True)
        metrics = None if folder is None else finished_metrics(folder, config)
        if metrics is None:
            return None
        click.echo(f"{folder} is finished; these are its test metrics", err=True)
        return {"output_dir": str(folder), **metrics}

    return agreed(look)


def _is_ours(cfg: Any) -> bool:
    from lavis_peft.runners.spec import OURS

    return cfg.run_cfg.runner in OURS


def _build(cfg: Any, training: bool) -> Any:
    from lavis import tasks
    from lavis.common.registry import registry

    from lavis_peft.runners import distributed

    _seed(int(cfg.run_cfg.seed) + distributed.rank())
    task = tasks.setup_task(cfg)
    datasets = task.build_datasets(cfg)
    if _is_ours(cfg):
        _check_datasets(cfg, datasets, training)
    model = task.build_model(cfg)
    runner_cls = registry.get_runner_class(cfg.run_cfg.runner)
    # LAVIS's own runners make a folder of this name; ours replaces it by the time to the second.
    from lavis.common.utils import now

    return runner_cls(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets)


def _seed(seed: int) -> None:
    # As LAVIS's scripts do, so that parts with random weights are the same whichever of the two starts a run.
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _check_purpose(cfg: Any, training: bool) -> None:
    from lavis_peft.runners.config import gives_weights, run_spec

    spec = run_spec(cfg.run_cfg)
    problems = []
    if not training and not spec.test_splits:
        problems.append("run.test_splits: names no split, so there is nothing to evaluate; e.g. [test]")
    training = training and not spec.evaluate
    if training:
        problems += spec.training_problems()
    # Scoring random weights on purpose takes `load_pretrained: false`; the runner warns of it.
    if not (training or gives_weights(cfg) or cfg.model_cfg.get("load_pretrained") is False):
        problems.append(
            "the model would have random weights: give model.load_finetuned=true and model.finetuned=CHECKPOINT, "
            "or run.resume_ckpt_path=CHECKPOINT, or base weights in model.pretrained"
        )
    if problems:
        raise ConfigError(problems, where=str(cfg.args.cfg_path))


def _check_datasets(cfg: Any, datasets: Any, training: bool) -> None:
    from lavis_peft.runners.config import run_spec
    from lavis_peft.tasks.splits import check_splits

    spec = run_spec(cfg.run_cfg)
    wanted = {"valid_splits": spec.valid_splits, "test_splits": spec.test_splits}
    if training and not spec.evaluate:
        wanted = {"train_splits": spec.train_splits, **wanted}
    check_splits(wanted, datasets)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result on standard output: JSON, or a line for each value.

    Args:
        result: Nested mappings of values; where it is empty, nothing is printed.
        as_json: Print JSON.
    """
    if not result:
        return
    from lavis_peft.runners.logs import plain

    if as_json:
        click.echo(json.dumps(plain(result), indent=2))
        return
    for key, value in _flat(plain(result)).items():
        click.echo(f"{key}: {value}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
