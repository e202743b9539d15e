"""AdaLoRA in a run: the budget acts where the optimizer steps, whichever loop makes it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from lavis_peft.adapters.adalora import RankBudget
from lavis_peft.adapters.checkpoint import atomic_file
from lavis_peft.adapters.history import by_word
from lavis_peft.errors import ConfigError, UserError
from lavis_peft.runners import distributed
from lavis_peft.runners.logs import RunLog, plain

_log = logging.getLogger(__name__)

HISTORY = "adalora_history.json"


class StepScaler(torch.amp.GradScaler):
    """A loss scaler that says when it is through with a step, be it made or skipped."""

    after_step: Callable[[], None] | None = None

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """As GradScaler's; `after_step` is called last, before the gradients are cleared."""
        result = super().step(optimizer, *args, **kwargs)
        if self.after_step is not None:
            self.after_step()
        return result


class Allocation:
    """Tells a budget of each optimizer step, and records what it does.

    A hook of the optimizer sees the steps that are made. Those that a loss scaler skips count too: else the run would
    be over before the schedule is, and the last allocation, which leaves exactly the target, would never come.

    Args:
        budget: The model's budget.
        total_step: Optimizer steps of the whole run.
        folder: The run's ``result`` folder.
        log: Gets the scalars.
    """

    def __init__(self, budget: RankBudget, total_step: int, folder: Path, log: RunLog) -> None:
        self.budget = budget
        self._total_step = total_step
        self._path = folder / HISTORY
        self._log = log
        self._made = False

    def start(self, optimizer: Optimizer, scaler: StepScaler | None, accum_grad_iters: int, resumed: bool) -> None:
        """Begin, and log the phases.

        Args:
            optimizer: Whose steps count.
            scaler: The loss scaler that makes them, if there is one.
            accum_grad_iters: Forward passes per step.
            resumed: Whether the budget's state was loaded from this run's checkpoint.

        Raises:
            ConfigError: The schedule is impossible, or isn't that of the run that is resumed.
        """
        self.budget.start(
            self._total_step,
            resumed=resumed,
            passes_per_step=accum_grad_iters,
            agree=distributed.from_main,
            tell=self._allocated,
        )
        for pool in self.budget.pools:
            _log.info(
                "AdaLoRA on %s: %d optimizer steps, %s; budget %d to %d %s",
                pool.name,
                self._total_step,
                pool.running_schedule.describe(),
                pool.initial,
                pool.target,
                "ranks" if self.budget.unit == "rank" else "parameters",
            )
        optimizer.register_step_post_hook(self._after_optimizer)
        self._scaled = scaler is not None
        if scaler is not None:
            scaler.after_step = self._after_scaler
        self._scalars(self.budget.steps_done)

    def _after_optimizer(self, *_: Any) -> None:
        self._made = True
        if not self._scaled:
            self._count()

    def _after_scaler(self) -> None:
        self._count()

    def left_out(self) -> None:
        """Count a step that the training loop doesn't make."""
        self._made = False
        self._count()

    def _count(self) -> None:
        made, self._made = self._made, False
        self.budget.after_step(made)

    def _allocated(self, step: int) -> None:
        self._scalars(step)

    def _scalars(self, step: int) -> None:
        words = [(slot.part, slot.word) for slot in self.budget.slots]
        self._log.scalars("adalora", by_word(words, self.budget.ranks()), step)

    def write(self) -> None:
        """Write `result/adalora_history.json`, on the main process."""
        if distributed.is_main():
            text = json.dumps(plain(self.budget.as_history()), separators=(",", ":"), allow_nan=False)
            with atomic_file(self._path) as file:
                file.write(text.encode() + b"\n")

    def finish(self) -> bool:
        """After the last epoch: make sure that the target is reached, and write the history.

        Returns:
            Whether ranks had to be taken away only now.
        """
        late = self.budget.finish()
        if late:
            _log.warning("AdaLoRA: training ended before its last allocation; the ranks were cut to the target now")
        self.write()
        self._report()
        return late

    def _report(self) -> None:
        """Write the run's report beside `result/`, on the main process."""
        from lavis_peft.adapters.report import write_report

        if distributed.is_main():
            try:
                written = write_report(self._path.parent.parent)
                _log.info("AdaLoRA: where the rank went is in %s", written[0].parent)
            except UserError as error:  # training is done; a report can be made again with `lavis-peft report`
                _log.warning("AdaLoRA: no report was written: %s", error)


def schedule_problems(budget: RankBudget, total_step: int) -> list[str]:
    """Why a run can't have the phases that its config asks for, before anything is trained.

    Args:
        budget: The model's budget.
        total_step: Optimizer steps of the whole run.
    """
    if total_step < 1:
        return ["run.accum_grad_iters: a step takes more iterations than an epoch has, so nothing would be trained"]
    return budget.schedules(total_step)[1]


def prepare(model: Any, total_step: int, folder: Path, log: RunLog) -> Allocation | None:
    """The allocation of a run; None where the model has no AdaLoRA.

    Args:
        model: The model, not wrapped for distribution.
        total_step: Optimizer steps of the whole run.
        folder: The run's ``result`` folder.
        log: Gets the scalars.

    Raises:
        ConfigError: The schedule is impossible.
    """
    budget = getattr(model, "adalora", None)
    if budget is None:
        return None
    if problems := schedule_problems(budget, total_step):
        raise ConfigError(problems)
    return Allocation(budget, total_step, folder, log)
