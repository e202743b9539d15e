"""Scoring a run's splits, picking its best epoch, and recording what was measured."""

import logging
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.resumable import ResumableRunner
from lavis_peft.runners.seeding import EVALUATION, seed_everything
from lavis_peft.runners.signals import Stopped, StopSignals

_log = logging.getLogger(__name__)


class ScoringRunner(ResumableRunner):
    """Adds the valid and test splits to a run and its checkpoints."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._signals = StopSignals()

    # ---- scoring -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def eval_epoch(self, split_name: str, cur_epoch: int | str, skip_reload: bool = True) -> Any:
        """Score the current weights on a split.

        Args:
            split_name: A valid or test split.
            cur_epoch: What the task names its files after.
            skip_reload: LAVIS's argument; reloading is :meth:`evaluate`'s business, once and not once per split.

        Returns:
            What the task's `after_evaluation` returns; often None on other than the main process.
        """
        loader = self.dataloaders[split_name]
        # Also an evaluation that draws numbers is the same in a run that was resumed before it.
        seed_everything(self.spec.seed, cur_epoch if isinstance(cur_epoch, int) else self.max_epoch, EVALUATION)
        model = self.plain_model
        model.eval()
        self.task.before_evaluation(model=model, dataset=self.datasets[split_name])
        results = self.task.evaluation(model, loader, cuda_enabled=self.cuda_enabled)
        if results is None:
            return None
        return self.task.after_evaluation(val_result=results, split_name=split_name, epoch=cur_epoch)

    def _score(self, split: str, epoch: int | str) -> dict[str, Any]:
        _log.info("Evaluating on %s.", split)
        metrics = self.eval_epoch(split, epoch)
        return metrics if isinstance(metrics, dict) else {}

    def _score_tests(self, epoch: int | str) -> dict[str, Any]:
        scored = {}
        with self._signals.ending_at_once():
            for split in self.spec.test_splits:
                scored[split] = self._score(split, epoch)
                self._record(split, scored[split], epoch)
        distributed.barrier()
        return scored

    def _validate(self, epoch: int) -> None:
        """Score the valid splits after an epoch and keep the weights if they are the best so far."""
        with self._signals.ending_at_once():
            scores = {split: self._score(split, epoch) for split in self.spec.valid_splits}
        decisive = self.spec.decisive_split or ""
        if scores[decisive] and "agg_metrics" not in scores[decisive]:
            raise ConfigError(
                f"run.valid_splits: task {self.spec.task} gives no agg_metrics, so no epoch can be called best"
            )
        if self.allocation is not None and not self.allocation.budget.is_fixed:
            # With more ranks than it will end with, a model is neither the best of the run nor a reason to stop it.
            self.progress = replace(self.progress, validated=True)
        else:
            # Only the main process is sure to have the metrics; all must agree on when to stop.
            self.progress = distributed.from_main(self.progress.after(scores[decisive].get("agg_metrics"), epoch))
        for split, metrics in scores.items():
            self._record(split, {**metrics, "best_epoch": self.progress.best_epoch}, epoch)
        # In this order: a run killed between the two finds the best one in the ordinary one.
        self._save_checkpoint(epoch)
        if self.progress.best_epoch == epoch:
            self._has_best = True
            self._save_checkpoint(epoch, is_best=True)

    def _end_if_asked(self) -> None:
        """End the run, on all processes, if a signal came to one of them."""
        (stop,) = distributed.any_of(self._signals.received)
        if stop:
            raise Stopped(stop)

    # ---- records -------------------------------------------------------------------------------------------------

    def _record(self, split: str, stats: dict[str, Any], epoch: int | str) -> None:
        """A split's numbers, into log.txt, `result/` and TensorBoard."""
        self.log.line({"epoch": epoch, **{f"{split}_{key}": value for key, value in stats.items()}})
        if split != "train":
            self.log.metrics(split, stats)
            self.log.scalars(split, stats, epoch if isinstance(epoch, int) else self.max_epoch)

    def log_config(self) -> None:
        """Write the whole config as the first line of `log.txt`."""
        self.log.line({"config": OmegaConf.to_container(self.config.config, resolve=True)})
