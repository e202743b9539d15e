"""The epoch-based runner for adapters, on LAVIS's RunnerBase (1.0.2 and main)."""

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lavis.common.utils import now

from lavis_peft.errors import ConfigError, RunStopped
from lavis_peft.runners import distributed, lock
from lavis_peft.runners.agreement import agreed
from lavis_peft.runners.allocation import prepare
from lavis_peft.runners.folders import make_run_folder
from lavis_peft.runners.loop import TrainingLoop
from lavis_peft.runners.scoring import ScoringRunner
from lavis_peft.runners.signals import Stopped
from lavis_peft.runners.watch import EpochWatch, foreign_loop
from lavis_peft.runners.whole import remove_leftovers
from lavis_peft.tasks.splits import check_splits

_log = logging.getLogger(__name__)


class RunnerPeft(ScoringRunner):
    """Trains and scores a model epoch by epoch, on a CPU, one GPU or several processes.

    A run's folder is ``output_dir/<start time>``; it holds ``checkpoint_best.pth`` (with valid splits),
    ``checkpoint_{epoch}.pth`` of the newest and every `save_freq`-th epoch, ``log.txt``, ``result/``, and
    ``finished.json`` once the run is done.
    """

    # ---- the run -------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train, validate, save, and score the test splits; with `run.evaluate`, only score.

        Returns:
            The metrics of each test split, on the main process.

        Raises:
            ConfigError: The run section lacks what training needs, there is nothing left to train, another run has the
                folder, or the run to go on with began with other settings.
            CheckpointError: `run.resume_ckpt_path` doesn't fit.
            TrainingDiverged: Loss or gradient isn't finite any more.
            DiskFull: A checkpoint finds no room.
            RunStopped: A signal came; the run is saved.
        """
        started = time.monotonic()
        held = None
        try:
            with self._signals.handled():
                held = lock.hold(self.output_dir)
                metrics = self._evaluate_all() if self.spec.evaluate else self._train_and_test()
        except Stopped as stop:
            raise RunStopped(self._how_to_go_on(stop)) from None
        finally:
            self.log.close()
            if held is not None:
                held.release()
        _log.info("Training time %s", datetime.timedelta(seconds=int(time.monotonic() - started)))
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
            if self.continues:  # what is scored afterwards isn't part of the run
                self._use_folder(make_run_folder(self.spec.output_dir, now()))
            self._take_given_weights()
            self._prepare_features(self.spec.test_splits)
        elif cur_epoch == "best":
            self._reload_best_model(self.plain_model)
        metrics = self._score_tests("evaluation" if skip_reload else cur_epoch)
        self.log.close()
        return metrics

    def _evaluate_all(self) -> dict[str, Any]:
        self.log_config()
        self._take_given_weights()
        self._prepare_features((*self.spec.valid_splits, *self.spec.test_splits))
        for split in self.spec.valid_splits:
            self._record(split, self._score(split, "evaluation"), "evaluation")
        return self._score_tests("evaluation")

    def _train_and_test(self) -> dict[str, Any]:
        if self.continues:
            agreed(lambda: remove_leftovers(self.output_dir))
            if (metrics := self._finished_metrics()) is not None:
                _log.warning("%s is finished; these are its test metrics", self.output_dir)
                return metrics
        else:
            self.log_config()
        self._check_training()
        self._prepare_features((*self.spec.train_splits, *self.spec.valid_splits, *self.spec.test_splits))
        self.allocation = prepare(self.plain_model, self.optimizer_steps, self.result_dir, self.log)
        resumed = self._go_on()
        if self.allocation is not None:
            self.allocation.start(self.optimizer, self.scaler, self.spec.accum_grad_iters, resumed)
        last = self._train_epochs()
        if self.allocation is not None and self.allocation.finish():
            self._save_checkpoint(last)
        if self._has_best and self.spec.test_splits:
            self._reload_best_model(self.plain_model)
        elif self.spec.valid_splits and self.spec.test_splits:
            _log.warning("No validation gave a finite metric; the test splits are scored at epoch %d", last)
        metrics = self._score_tests("best" if self._has_best else last)
        self._write_finished(metrics)
        if not self.spec.save_last:
            self.files.drop(last)
        return metrics

    def _prepare_features(self, splits: tuple[str, ...]) -> None:
        with self._signals.ending_at_once():
            self._use_features(splits)

    def _check_training(self) -> None:
        problems = self.spec.training_problems()
        # Not `plain_model`: it wraps the model, whose vision encoder may be put away yet.
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            problems.append("model: nothing in it trains")
        if self.mixed_dtype is torch.bfloat16 and (foreign := foreign_loop(self)):
            problems.append(f"run.amp_dtype: bf16, but {foreign} trains with a loop of its own, which knows fp16 only")
        if problems:
            raise ConfigError(problems)
        check_splits({"train_splits": self.spec.train_splits}, self.datasets)
        if not self.optimizer_steps:
            raise ConfigError(
                f"run.accum_grad_iters: a step takes {self.spec.accum_grad_iters} iterations and an epoch has "
                f"{len(self.train_loader)}, so nothing would be trained"
            )
        if self.spec.amp and self.mixed_dtype is None:
            _log.warning(
                "run.amp: float16 needs a GPU; training in full precision (run.amp_dtype=bf16 mixes on a CPU too)"
            )

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run; iterations that an epoch leaves over make none."""
        return self.max_epoch * (len(self.train_loader) // self.spec.accum_grad_iters)

    def _train_epochs(self) -> int:
        """Train what is left of the run; returns the last epoch that was trained."""
        epoch = self.start_epoch - 1
        train_one = self._epochs()
        if not self.progress.validated and self.spec.valid_splits:
            self._validate(epoch)
        while epoch + 1 < self.max_epoch and not self._stops_early():
            epoch += 1
            self._record("train", train_one(epoch), epoch)
            if self.allocation is not None:
                self.allocation.write()
            last = epoch + 1 == self.max_epoch
            validates = bool(self.spec.valid_splits) and (last or epoch % self.spec.val_freq == 0)
            self.progress = replace(self.progress, validated=not validates)
            # Before the validation, which may take long: what is trained must survive a kill.
            self._save_checkpoint(epoch)
            self._end_if_asked()
            if validates:
                self._validate(epoch)
                self._end_if_asked()
            distributed.barrier()
        return epoch

    def _epochs(self) -> Callable[[int], dict[str, Any]]:
        """What trains an epoch and gives its log line."""
        if foreign := foreign_loop(self):
            _log.warning(
                "%s trains with a loop of its own: such a run is saved after whole epochs only (no "
                "run.save_every_steps), and a signal, or the first loss that isn't finite, ends it where it is",
                foreign,
            )
            return self._train_one_foreign
        loop = TrainingLoop(
            self.spec,
            self.task,
            self.model,
            self.train_loader,
            self.optimizer,
            self.scaler,
            self.lr_scheduler,
            self._signals,
            save=lambda epoch, done, sums: self._save_checkpoint(epoch, iteration=done, sums=sums),
            scalars=lambda values, step: self.log.scalars("train", values, step),
            left_out=self.allocation.left_out if self.allocation is not None else lambda: None,
            bad_steps=self._bad_steps,
        )

        def train_one(epoch: int) -> dict[str, Any]:
            if epoch != self.start_epoch:
                return loop.run_epoch(epoch)
            return loop.run_epoch(epoch, self.start_iteration, self._start_sums)

        return train_one

    def _train_one_foreign(self, epoch: int) -> dict[str, Any]:
        self.train_loader.set_epoch(epoch, self.spec.seed)
        self.optimizer.zero_grad()
        watch = EpochWatch(self.model, self.optimizer, epoch, len(self.train_loader), self.log, self.spec.log_freq)
        with self._signals.ending_at_once():
            return watch.line_of(lambda: self.train_epoch(epoch))

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

    # ---- signals -------------------------------------------------------------------------------------------------

    def _how_to_go_on(self, stop: Stopped) -> str:
        if self.spec.evaluate:
            return f"{stop.name}: the evaluation was ended; to repeat it, start it again"
        if self._newest is None:
            return f"{stop.name}: the run was ended before it had saved anything new in {self.output_dir}"
        return (
            f"{stop.name}: the run is saved in {self._newest}; to go on with it, start it again with --resume "
            "(run.resume_ckpt_path=auto)"
        )
