"""Optimizer steps whose loss or gradient isn't a finite number: named, left out, and too many of them end the run."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lavis_peft.checks import shortened
from lavis_peft.errors import TrainingDiverged
from lavis_peft.runners.finite import gradients_are_finite, part_of_forward, part_of_gradients, question_ids

_log = logging.getLogger(__name__)


class BadSteps:
    """Watches one step after another.

    Args:
        model: The model, not wrapped for distribution.
        most: So many bad steps in a row end the run.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        self._model = model
        self._most = most
        self._trained = [each for each in model.parameters() if each.requires_grad]
        self.in_a_row = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was seen since the last step; iterations that an epoch leaves over belong to none."""
        self._ids: list[str] = []
        self._bad_loss: tuple[float, list[str], Callable[[nn.Module], Any]] | None = None

    def see(self, loss: float, samples: Mapping[str, Any], forward: Callable[[nn.Module], Any]) -> None:
        """Take in an iteration of the step.

        Args:
            loss: Its loss.
            samples: Its batch.
            forward: Makes its forward pass again, with the model it is given.
        """
        ids = question_ids(samples)
        self._ids += ids
        if not math.isfinite(loss) and self._bad_loss is None:
            self._bad_loss = loss, ids, forward

    @property
    def saw_bad_loss(self) -> bool:
        """Whether a loss of this step, on this process, wasn't finite."""
        return self._bad_loss is not None

    def gradients_are_finite(self) -> bool:
        """Whether the step's gradients are, on this process."""
        return gradients_are_finite(self._trained)

    def end_step(self, bad: bool, epoch: int, done: int, elsewhere: bool = False) -> None:
        """End a step: say what went wrong, if anything did.

        Args:
            bad: Whether a process found loss or gradient not finite.
            epoch: Counted from 0.
            done: Iterations of the epoch that are done.
            elsewhere: Whether it was another process's loss; the gradients are shared, so that they tell nothing then.

        Raises:
            TrainingDiverged: It is the last of too many.
        """
        if not bad:
            self.in_a_row = 0
            self.clear()
            return
        self.in_a_row += 1
        finding = self._finding(elsewhere)
        self.clear()
        _log.warning(
            "Epoch %d, iteration %d: %s. The step is left out (%d in a row, run.max_bad_steps is %d)",
            epoch,
            done - 1,
            finding,
            self.in_a_row,
            self._most,
        )
        if self.in_a_row >= self._most:
            raise TrainingDiverged(
                f"{self.in_a_row} optimizer steps in a row without finite numbers (run.max_bad_steps), the last at "
                f"epoch {epoch}, iteration {done - 1}: {finding}; try a lower run.init_lr, a longer warm-up "
                "(run.warmup_steps), or run.amp=false; the checkpoints from before are kept"
            )

    def _finding(self, elsewhere: bool) -> str:
        if self._bad_loss is not None:
            loss, ids, forward = self._bad_loss
            part = part_of_forward(self._model, lambda: forward(self._model))
            return f"the loss is {loss}; it begins in {part}; samples: {shortened(ids) or 'without ids'}"
        if elsewhere:
            return "another process's loss isn't a finite number"
        if not self.gradients_are_finite():
            where = part_of_gradients(self._model)
            return f"{where} aren't finite numbers; samples: {shortened(self._ids) or 'without ids'}"
        return "another process's gradients aren't finite numbers"
