"""Watches a training loop that isn't the plugin's from outside: every iteration's loss, a progress bar, scalars."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lavis.runners.runner_base import RunnerBase
from lavis.tasks.base_task import BaseTask
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from lavis_peft.errors import TrainingDiverged
from lavis_peft.runners import distributed
from lavis_peft.runners.logs import RunLog
from lavis_peft.runners.progress import progress_bar


def foreign_loop(runner: Any) -> str | None:
    """Whose training loop a runner is to use instead of the plugin's: a task's own, or its own; else None.

    Args:
        runner: A runner of the plugin's, or a subclass of one.
    """
    if type(runner).train_epoch is not RunnerBase.train_epoch:
        return type(runner).__name__
    own = [getattr(type(runner.task), name, None) for name in ("train_epoch", "_train_inner_loop")]
    return None if own == [BaseTask.train_epoch, BaseTask._train_inner_loop] else type(runner.task).__name__


class EpochWatch:
    """Sees every loss of one epoch through a forward hook, since LAVIS's loop returns only rounded averages.

    Args:
        model: The model as LAVIS's loop calls it (wrapped, where it is).
        optimizer: Its learning rate is shown.
        epoch: Counted from 0.
        iterations: In this epoch.
        log: Gets the scalars.
        log_freq: Iterations between scalars.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, epoch: int, iterations: int, log: RunLog, log_freq: int
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._epoch = epoch
        self._iterations = iterations
        self._log = log
        self._log_freq = log_freq
        self._total = 0.0
        self._count = 0
        self._bar: tqdm[Any] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator["EpochWatch"]:
        """Watch the forward passes made inside the `with` block.

        Raises:
            TrainingDiverged: A loss was NaN or infinite; no optimizer step was made with it.
        """
        handle = self._model.register_forward_hook(self._see)
        try:
            with progress_bar(self._iterations, f"epoch {self._epoch}") as self._bar, _above(self._bar):
                yield self
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else None
        if loss is None or not module.training:
            return
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss is {value} at epoch {self._epoch}, iteration {self._count}; try a lower run.init_lr, "
                "a longer warm-up (run.warmup_steps), or run.amp=false; the last good checkpoint is kept"
            )
        if self._count % self._log_freq == 0:
            step = self._epoch * self._iterations + self._count
            self._log.scalars("train", {"loss": value, "lr": self.lr}, step)
        self._total += value
        self._count += 1
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{value:.4f}", lr=f"{self.lr:.3g}", refresh=False)
            self._bar.update()

    @property
    def lr(self) -> float:
        """The first parameter group's learning rate."""
        return float(self._optimizer.param_groups[0]["lr"])

    def line_of(self, train: Callable[[], Mapping[str, str]]) -> dict[str, Any]:
        """Watch an epoch and give its log line.

        Args:
            train: Trains it; gives LAVIS's averages, which are text of three decimals.
        """
        started = time.monotonic()
        with self.watching():
            rounded = train()
        # In three decimals, a learning rate is 0.000.
        line = {**{key: float(value) for key, value in rounded.items()}, "lr": self.lr}
        loss = self.mean_loss()
        if loss is not None:
            line["loss"] = loss
        return {**line, "seconds": round(time.monotonic() - started, 3)}

    def mean_loss(self) -> float | None:
        """The epoch's mean loss over all processes, unrounded; None where the model returns no `loss`."""
        total, count = distributed.summed(self._total, self._count)
        return total / count if count else None


class _AboveBar(io.TextIOBase):
    """Standard output while a bar is shown: LAVIS's own progress lines are dropped, the rest goes above the bar."""

    def __init__(self) -> None:
        self._target = sys.stdout
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if "eta: " not in line:
                tqdm.write(line, file=self._target)
        return len(text)


@contextlib.contextmanager
def _above(bar: Any) -> Iterator[None]:
    if bar is None:
        yield
        return
    with contextlib.redirect_stdout(_AboveBar()):
        yield
