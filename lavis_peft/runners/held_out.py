"""Scoring several models on the split that a run config holds out, without a run."""

import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lavis.common.registry import registry
from torch import nn

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.config import RunConfig, run_spec
from lavis_peft.runners.loaders import eval_loader, joined
from lavis_peft.runners.precision import take_precision
from lavis_peft.tasks.splits import check_splits


class HeldOut:
    """A run config's task and the split to choose by.

    Args:
        cfg_path: The run config.
        options: Overrides of it, ``key=value`` each.

    Raises:
        ConfigError: Something in it is wrong, or it has no split to score on.
        DataError: The data can't be used.
    """

    def __init__(self, cfg_path: str, options: Sequence[str] = ()) -> None:
        self._config = RunConfig(Namespace(cfg_path=cfg_path, options=list(options)))
        self._spec = run_spec(self._config.run_cfg)
        self._task = registry.get_task_class(self._config.run_cfg.task).setup_task(cfg=self._config)
        datasets = self._task.build_datasets(self._config)
        check_splits({"valid_splits": self._spec.valid_splits, "test_splits": self._spec.test_splits}, datasets)
        by_split = joined(datasets)
        #: The split that is scored, and whether the run doesn't validate on any, so that it is one it is tested on.
        self.split, self.is_test = _choose(self._spec.valid_splits, self._spec.test_splits, by_split, cfg_path)
        self._dataset = by_split[self.split]
        self.device = distributed.take_device(self._spec.device)

    @property
    def questions(self) -> int:
        """How many there are in the split."""
        return len(self._dataset)

    def score(self, model: nn.Module) -> dict[str, Any]:
        """A model's metrics on the split; ``agg_metrics`` is the one to choose by, higher is better.

        Args:
            model: One that the task can evaluate; it is moved to the config's device.
        """
        on_gpu = self.device != "cpu"
        size = self._spec.batch_size_eval or self._spec.batch_size_train or 16
        loader = eval_loader(self._dataset, size, self._spec.num_workers or 0, False, on_gpu)
        model = model.to(self.device).eval()
        take_precision(model, self._spec.amp, self._spec.amp_dtype, self.device)
        paths = registry.mapping["paths"]
        before = {key: paths[key] for key in ("output_dir", "result_dir") if key in paths}
        # Tasks write predictions into the run's folder; there is no run here.
        with tempfile.TemporaryDirectory() as folder:
            paths |= {"output_dir": folder, "result_dir": folder}
            try:
                self._task.before_evaluation(model=model, dataset=self._dataset)
                rows = self._task.evaluation(model, loader, cuda_enabled=on_gpu)
                return dict(self._task.after_evaluation(val_result=rows, split_name=self.split, epoch="held_out"))
            finally:
                for key in ("output_dir", "result_dir"):
                    paths.pop(key)
                paths |= before


def _choose(valid: Sequence[str], test: Sequence[str], present: Mapping[str, Any], cfg_path: str) -> tuple[str, bool]:
    if valid:
        return ("val" if "val" in valid else valid[0]), False
    if "val" in present:
        return "val", False
    if test:
        return test[0], True
    raise ConfigError(
        f"run.valid_splits: names no split to choose by; the data has: {listing(present)}", where=cfg_path
    )
