"""What LAVIS's train.py and evaluate.py do, for where there is no LAVIS checkout."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from lavis_peft.errors import ConfigError


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
    from lavis_peft import register
    from lavis_peft.runners.config_file import read_run_file

    read_run_file(cfg_path, options)  # before the seconds that LAVIS's import takes
    register()
    from lavis import tasks
    from lavis.common.logger import setup_logger
    from lavis.common.registry import registry

    from lavis_peft.runners import distributed, hooks
    from lavis_peft.runners.config import RunConfig
    from lavis_peft.runners.loaders import seed_everything
    from lavis_peft.runners.spec import OURS

    hooks.install()
    cfg = RunConfig(Namespace(cfg_path=cfg_path, options=list(options)))
    ours = cfg.run_cfg.runner in OURS
    if ours:
        _check_purpose(cfg, training)
    distributed.init_distributed_mode(cfg.run_cfg)
    seed_everything(int(cfg.run_cfg.seed), epoch=0)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    setup_logger()
    cfg.pretty_print()
    task = tasks.setup_task(cfg)
    datasets = task.build_datasets(cfg)
    if ours:
        _check_datasets(cfg, datasets, training)
    model = task.build_model(cfg)
    runner_cls = registry.get_runner_class(cfg.run_cfg.runner)
    # LAVIS's own runners make a folder of this name; ours replaces it by the time to the second.
    from lavis.common.utils import now

    return runner_cls(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets)


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
