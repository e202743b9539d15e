"""The epoch-based runner for adapters, on LAVIS's RunnerBase (1.0.2 and main)."""

import datetime
import logging
import time
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.allocation import prepare
from lavis_peft.runners.base import BaseRunnerPeft
from lavis_peft.runners.watch import EpochWatch
from lavis_peft.tasks.splits import check_splits

_log = logging.getLogger(__name__)


class RunnerPeft(BaseRunnerPeft):
    """Trains and scores a model epoch by epoch, on a CPU, one GPU or several processes.

    A run's folder is ``output_dir/<start time>``; it holds ``checkpoint_best.pth`` (with valid splits),
    ``checkpoint_{epoch}.pth`` of the newest and every `save_freq`-th epoch, ``log.txt`` and ``result/``.
    """

    # ---- the run -------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train, validate, save, and score the test splits; with `run.evaluate`, only score.

        Returns:
            The metrics of each test split, on the main process.

        Raises:
            ConfigError: The run section lacks what training needs, or there is nothing left to train.
            CheckpointError: `run.resume_ckpt_path` doesn't fit.
            TrainingDiverged: The loss isn't finite.
        """
        started = time.monotonic()
        self.log_config()
        if self.spec.evaluate:
            self._take_given_weights()
            for split in self.spec.valid_splits:
                self._record(split, self._score(split, "evaluation"), "evaluation")
            metrics = self._score_tests("evaluation")
        else:
            metrics = self._train_and_test()
        _log.info("Training time %s", datetime.timedelta(seconds=int(time.monotonic() - started)))
        self.log.close()
        return metrics

    def evaluate(self, cur_epoch: int | str = "best", skip_reload: bool = False) -> dict[str, Any]:
        """Score the test splits; what LAVIS's `evaluate.py` calls.

        Args:
            cur_epoch: ``best`` reloads the best checkpoint of this run first.
            skip_reload: Score the model as it is, or with the weights of `run.resume_ckpt_path` if that is given.

        Returns:
            The metrics of each test split, on the main process.

        Raises:
            ConfigError: There is no test split.
            CheckpointError: The checkpoint doesn't fit.
        """
        if not self.spec.test_splits:
            raise ConfigError("run.test_splits: names no split, so there is nothing to evaluate; e.g. [test]")
        if skip_reload:
            self._take_given_weights()
        elif cur_epoch == "best":
            self._reload_best_model(self.plain_model)
        metrics = self._score_tests("evaluation" if skip_reload else cur_epoch)
        self.log.close()
        return metrics

    def _train_and_test(self) -> dict[str, Any]:
        self._check_training()
        self.allocation = prepare(self.plain_model, self.optimizer_steps, self.result_dir, self.log)
        if self.spec.resume_ckpt_path is not None:
            self._resume(self.spec.resume_ckpt_path)
        if self.allocation is not None:
            resumed = self.spec.resume_ckpt_path is not None
            self.allocation.start(self.optimizer, self.scaler, self.spec.accum_grad_iters, resumed)
        last = self._train_epochs()
        if self.allocation is not None and self.allocation.finish():
            self._save_checkpoint(last)
        if self._has_best and self.spec.test_splits:
            self._reload_best_model(self.plain_model)
        elif self.spec.valid_splits and self.spec.test_splits:
            _log.warning("No validation gave a finite metric; the test splits are scored at epoch %d", last)
        return self._score_tests("best" if self._has_best else last)

    def _check_training(self) -> None:
        problems = self.spec.training_problems()
        if not any(parameter.requires_grad for parameter in self.plain_model.parameters()):
            problems.append("model: nothing in it trains")
        if problems:
            raise ConfigError(problems)
        check_splits({"train_splits": self.spec.train_splits}, self.datasets)
        if self.spec.amp and not self.cuda_enabled:
            _log.warning("run.amp: mixed precision needs a GPU; training in full precision")

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run; iterations that an epoch leaves over make none."""
        return self.max_epoch * (len(self.train_loader) // self.spec.accum_grad_iters)

    def _train_epochs(self) -> int:
        """Train what is left of the run; returns the last epoch that was trained."""
        epoch = self.start_epoch - 1
        if not self.progress.validated and self.spec.valid_splits:
            self._validate(epoch)
        while epoch + 1 < self.max_epoch and not self._stops_early():
            epoch += 1
            self._train_one(epoch)
            last = epoch + 1 == self.max_epoch
            validates = bool(self.spec.valid_splits) and (last or epoch % self.spec.val_freq == 0)
            self.progress = replace(self.progress, validated=not validates)
            # Before the validation, which may take long: what is trained must survive a kill.
            self._save_checkpoint(epoch)
            self.files.drop(epoch - 1)
            if validates:
                self._validate(epoch)
            distributed.barrier()
        if not self.spec.save_last:
            self.files.drop(epoch)
        return epoch

    def _train_one(self, epoch: int) -> None:
        self.train_loader.set_epoch(epoch, self.spec.seed)
        # What an incomplete accumulation left behind isn't part of this epoch's first step.
        self.optimizer.zero_grad()
        watch = EpochWatch(self.model, self.optimizer, epoch, len(self.train_loader), self.log, self.spec.log_freq)
        started = time.monotonic()
        with watch.watching():
            rounded = self.train_epoch(epoch)
        # LAVIS's averages are text of three decimals, in which a learning rate is 0.000.
        stats = {**{key: float(value) for key, value in rounded.items()}, "lr": watch.lr}
        loss = watch.mean_loss()
        if loss is not None:
            stats["loss"] = loss
        self._record("train", {**stats, "seconds": round(time.monotonic() - started, 3)}, epoch)
        if self.allocation is not None:
            self.allocation.write()

    def _stops_early(self) -> bool:
        if not self.spec.patience or self.progress.stale < self.spec.patience:
            return False
        best = self.progress
        _log.info(
            "Stopping early: %d validations since the best, epoch %s's %s",
            best.stale,
            best.best_epoch,
            best.best_metric,
        )
        return True

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
        for split in self.spec.test_splits:
            scored[split] = self._score(split, epoch)
            self._record(split, scored[split], epoch)
        distributed.barrier()
        return scored

    def _validate(self, epoch: int) -> None:
        """Score the valid splits after an epoch and keep the weights if they are the best so far."""
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
        if self.progress.best_epoch == epoch:
            self._has_best = True
            self._save_checkpoint(epoch, is_best=True)
        self._save_checkpoint(epoch)

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
