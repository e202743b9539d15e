"""What a runner keeps on the disk, and how a run goes on from it."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import CheckpointError, ConfigError, DiskFull
from lavis_peft.runners import checkpoints, comparison, distributed
from lavis_peft.runners.agreement import agreed
from lavis_peft.runners.bad_steps import BadSteps
from lavis_peft.runners.base import BaseRunnerPeft
from lavis_peft.runners.checkpoints import Progress
from lavis_peft.runners.config import gives_weights
from lavis_peft.runners.fingerprint import frozen_weights
from lavis_peft.runners.finished import finished_metrics, write_finished
from lavis_peft.runners.folders import FINISHED
from lavis_peft.runners.progress import EpochSums
from lavis_peft.runners.spec import AUTO
from lavis_peft.runners.whole import newest_run, newest_whole

_log = logging.getLogger(__name__)


class ResumableRunner(BaseRunnerPeft):
    """Adds checkpoints, and going on from one, to where and on what a run happens."""

    #: Where training begins: the epoch, counted from 0, and its iterations that are done.
    start_epoch = 0
    start_iteration = 0

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.progress = Progress()
        self._has_best = False
        self._start_sums: EpochSums | None = None
        self._newest: Path | None = None
        self._bad_steps = BadSteps(self._model, self.spec.max_bad_steps)
        self._frozen: dict[str, str] = {}

    # ---- saving --------------------------------------------------------------------------------------------------

    def _save_checkpoint(
        self, cur_epoch: int, is_best: bool = False, iteration: int = 0, sums: EpochSums | None = None
    ) -> None:
        """Save; every process must call it, and all raise what goes wrong on the main one."""
        of_all = None if sums is None else sums.of_all()
        try:
            path = agreed(lambda: self._write(cur_epoch, is_best, iteration, of_all))
        except DiskFull as error:
            if self.spec.on_full_disk == "stop":
                raise
            _log.warning("%s; the run goes on without it (run.on_full_disk)", error)
        else:
            self._newest = self._newest if is_best else path

    def _write(self, epoch: int, best: bool, iteration: int, sums: list[dict[str, Any]] | None) -> Path:
        content = {
            "model": checkpoints.trained_state(self.plain_model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "epoch": epoch,
            "iteration": iteration,
            "sums": sums,
            "bad_in_a_row": self._bad_steps.in_a_row,
            "config": self._plain_config(),
            "progress": self.progress.as_dict(),
            "log_lines": self.log.length,
            "world_size": distributed.world_size(),
            "frozen": self._frozen,
            **checkpoints.identity(self.plain_model),
        }
        # After a bad step the weights may be ruined already: what was saved before stays, too.
        path = self.files.save(content, best=best, prune=not self._bad_steps.in_a_row)
        _log.info("Saved epoch %d%s to %s", epoch, f", iteration {iteration}" if iteration else "", path)
        return path

    def _plain_config(self) -> dict[str, Any]:
        return OmegaConf.to_container(self.config.config, resolve=True)

    # ---- a finished run ------------------------------------------------------------------------------------------

    def _write_finished(self, metrics: Mapping[str, Any]) -> None:
        agreed(lambda: write_finished(self.output_dir, metrics, self._plain_config()))

    def _finished_metrics(self) -> dict[str, Any] | None:
        """The test metrics of the run that this one was to go on with, if it is done and was the same."""
        return agreed(lambda: finished_metrics(self.output_dir, self._plain_config()))

    # ---- going on ------------------------------------------------------------------------------------------------

    def _go_on(self) -> bool:
        """Take over what `run.resume_ckpt_path` names; says whether there was anything."""
        # Before anything is loaded: AdaLoRA's frozen parameters change in a run.
        self._frozen = frozen_weights(self.plain_model) if distributed.is_main() else {}
        path = self.spec.resume_ckpt_path
        if path is None or (path == AUTO and not self.continues):
            return False
        self._go_on_here() if self.continues else self._go_on_from(path)
        _log.info("Goes on with epoch %d, iteration %d", self.start_epoch, self.start_iteration)
        return True

    def _go_on_here(self) -> None:
        """Go on in the folder of an earlier run, from its newest whole checkpoint."""
        path = agreed(self._newest_here)
        saved = checkpoints.read_run_checkpoint(str(path))
        self._restore(saved, str(path))
        self._take_best(saved, str(path))

        def tidy() -> None:
            self.log.cut(saved.get("log_lines", self.log.length))
            (self.output_dir / FINISHED).unlink(missing_ok=True)

        agreed(tidy)

    def _newest_here(self) -> Path:
        found = newest_whole(self.output_dir)
        if found is None:
            raise ConfigError(
                f"run.resume_ckpt_path: auto: {self.output_dir} is finished and keeps no checkpoint to go on from"
            )
        return found.path

    def _go_on_from(self, source: str) -> None:
        """Go on in a folder of one's own, from any checkpoint of a run."""
        saved = checkpoints.read_run_checkpoint(source)
        self._restore(saved, source)
        # A run that was killed in its last validation still has that, and the test splits, to do.
        if self.start_epoch >= self.max_epoch and self.progress.validated:
            raise ConfigError(
                f"run.resume_ckpt_path: {source} is of epoch {self.start_epoch - 1}, and {self.length} ends with epoch "
                f"{self.max_epoch - 1}; raise {self.length.partition('=')[0]} to train on, or score it with "
                "run.evaluate=true"
            )
        self._take_best(saved, source)
        self.log.take_over(Path(source).expanduser().parent, saved.get("log_lines", 0))

    def _restore(self, saved: dict[str, Any], source: str) -> None:
        self._compare(saved, source)
        checkpoints.load_trained(self.plain_model, saved, source)
        checkpoints.load_optimizer(self.optimizer, self.scaler, saved, source)
        self.start_iteration = saved.get("iteration") or 0
        self.start_epoch = saved["epoch"] + (0 if self.start_iteration else 1)
        self._start_sums = EpochSums.restored(saved.get("sums")) if self.start_iteration else None
        self._bad_steps.in_a_row = saved.get("bad_in_a_row", 0)
        self.progress = checkpoints.restored_progress(saved)

    def _load_checkpoint(self, url_or_filename: str) -> None:
        # LAVIS's own reads the file with a torch.load of its own, and restores half of what is in it.
        self._restore(checkpoints.read_run_checkpoint(url_or_filename), url_or_filename)

    def _compare(self, saved: Mapping[str, Any], source: str) -> None:
        """Stop where the run would go on with something else than it began with."""
        if "world_size" not in saved:
            return  # of LAVIS's own runner, or of this plugin before it kept what to compare

        def check() -> list[str]:
            before, now = saved["config"], self._plain_config()
            differing = comparison.config_differences(before, now)
            if saved["world_size"] != distributed.world_size():
                differing["world_size"] = saved["world_size"], distributed.world_size()
            for part in sorted(saved["frozen"].keys() | self._frozen.keys()):
                old, new = saved["frozen"].get(part), self._frozen.get(part)
                if old != new:
                    differing[f"weights.{part}"] = old, new
            known = comparison.known_keys(before, now) | {"world_size"} | {f"weights.{part}" for part in self._frozen}
            return comparison.check_same(differing, self.spec.allow_config_change, known, source)

        for sentence in agreed(check):
            _log.warning("Goes on with another setting: %s", sentence)

    def _take_best(self, saved: dict[str, Any], source: str) -> None:
        """Find the best checkpoint that the restored progress speaks of."""
        if self.progress.best_epoch is None:
            return
        self._has_best = agreed(lambda: self._best_is_here(saved, source))
        if not self._has_best:
            _log.warning("The best epoch's checkpoint isn't beside %s; the best is looked for anew", source)
            self.progress = Progress(validated=self.progress.validated)

    def _best_is_here(self, saved: dict[str, Any], source: str) -> bool:
        try:
            check = partial(checkpoints.check_trained, self.plain_model)
            if self.files.adopt_best(source, self.progress, check):
                return True
            # A newer one that the run comes to again, after its newest checkpoint was found damaged.
            newer = self.continues and self.files.best.is_file()
            if newer and read_checkpoint(self.files.best)["epoch"] >= self.start_epoch:
                return True
        except CheckpointError as error:
            _log.warning("%s", error)
        if saved["epoch"] == self.progress.best_epoch and not self.start_iteration:
            self.files.save(saved, best=True)  # killed between the two
            return True
        return False

    # ---- weights to score ----------------------------------------------------------------------------------------

    def _take_given_weights(self) -> None:
        """With evaluation, `run.resume_ckpt_path` is the checkpoint to score; LAVIS passes over it without a word."""
        path = self.spec.resume_ckpt_path
        path = agreed(self._newest_to_score) if path == AUTO else path
        if path is not None:
            checkpoints.load_trained(self.plain_model, read_checkpoint(path), path)
            _log.info("Evaluating the weights of %s", path)
        elif not gives_weights(self.config):
            _log.warning("No checkpoint and no base weights are given: random weights are scored")

    def _newest_to_score(self) -> str:
        folder = newest_run(self.spec.output_dir)
        best = None if folder is None else type(self.files)(folder, 0).best
        if best is not None and best.is_file():
            return str(best)
        whole = None if folder is None else newest_whole(folder)
        if whole is None:
            raise ConfigError(f"run.resume_ckpt_path: auto: no run in {self.spec.output_dir} has a checkpoint to score")
        return str(whole.path)

    def _reload_best_model(self, model: nn.Module) -> nn.Module:
        path = self.files.best
        saved = read_checkpoint(path)
        checkpoints.load_trained(model, saved, str(path))
        if saved.get("epoch") != self.progress.best_epoch:
            _log.warning("%s is of epoch %s, the best was %s", path, saved.get("epoch"), self.progress.best_epoch)
        _log.info("Scoring the best epoch, %s", path)
        return model
