"""The training loop: an epoch's iterations, from any of them on.

LAVIS's own loop can only make whole epochs, in one go. This one is computed alike, with these differences: the gradient
of an optimizer step is the mean over its iterations (LAVIS 1.0.2 takes the sum, LAVIS main the mean); every generator
is seeded before each iteration, so that the epoch can be entered anywhere; steps without finite numbers are left out;
and between two steps the run can be saved and ended.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lavis.datasets.data_utils import prepare_sample
from torch import nn

from lavis_peft.datasets.bad_samples import BadSamples
from lavis_peft.errors import DataError
from lavis_peft.runners import distributed
from lavis_peft.runners.bad_steps import BadSteps
from lavis_peft.runners.precision import mixed_dtype
from lavis_peft.runners.progress import EpochSums, progress_bar
from lavis_peft.runners.seeding import seed_everything
from lavis_peft.runners.signals import Stopped, StopSignals
from lavis_peft.runners.spec import RunSpec

_log = logging.getLogger(__name__)

#: Saves the run: gets the epoch, how many of its iterations are done, and its sums.
Save = Callable[[int, int, EpochSums], None]


class TrainingLoop:
    """Trains a model, one epoch at a time.

    Args:
        spec: The run section.
        task: A LAVIS task; its `train_step` makes the loss.
        model: The model as training calls it, wrapped where several processes train it.
        loader: Gives an epoch's batches from any iteration on.
        optimizer: Steps after every `accum_grad_iters` iterations.
        scaler: The loss scaler of float16, or None.
        schedule: A learning-rate schedule; steps before every iteration.
        signals: Ends the run between two optimizer steps.
        save: Saves the run within an epoch.
        scalars: Takes an iteration's numbers and its place in the run.
        left_out: Called in place of an optimizer step that isn't made.
        bad_steps: Watches the numbers.
    """

    def __init__(
        self,
        spec: RunSpec,
        task: Any,
        model: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        schedule: Any,
        signals: StopSignals,
        save: Save,
        scalars: Callable[[Mapping[str, float], int], None],
        left_out: Callable[[], None],
        bad_steps: BadSteps,
    ) -> None:
        self._spec = spec
        self._task = task
        self._model = model
        self._loader = loader
        self._optimizer = optimizer
        self._scaler = scaler
        self._schedule = schedule
        self._signals = signals
        self._save = save
        self._scalars = scalars
        self._left_out = left_out
        self._device = next(model.parameters()).device
        self._mixed = mixed_dtype(spec.amp, spec.amp_dtype, self._device.type)
        self._bad_samples = BadSamples()
        self._bad_steps = bad_steps
        self._has_gradient = False
        self._bar: Any = None

    def run_epoch(self, epoch: int, first: int = 0, sums: EpochSums | None = None) -> dict[str, Any]:
        """Train an epoch, or the rest of one.

        Args:
            epoch: Counted from 0.
            first: Its iterations that are done, a multiple of `accum_grad_iters`.
            sums: What those left.

        Returns:
            The epoch's log line: learning rate, mean of each loss over all processes, counts, seconds.

        Raises:
            Stopped: A signal came; the run is saved.
            TrainingDiverged: Too many steps in a row had no finite numbers.
            DataError: A batch has no sample that can be read, and `on_bad_sample` is error.
        """
        sums, total = sums or EpochSums(), len(self._loader)
        _log.info("Start training epoch %d, iteration %d of %d", epoch, first, total)
        self._model.train()
        # What an incomplete accumulation left behind isn't part of this epoch's first step.
        self._forget()
        self._bad_steps.clear()
        self._loader.set_epoch(epoch, self._spec.seed, first)
        started = time.monotonic() - sums.seconds
        with progress_bar(total, f"epoch {epoch}", first) as self._bar:
            for iteration, batch in zip(range(first, total), self._loader, strict=True):
                self._iterate(epoch, iteration, batch, sums)
                sums.seconds = time.monotonic() - started
                if (iteration + 1) % self._spec.accum_grad_iters == 0:
                    self._end_step(epoch, iteration + 1, sums)
        line = {"lr": self._lr, **sums.line()}
        if "loss" not in line and not sums.bad_steps:
            raise DataError(f"epoch {epoch} has no batch whose samples can be read; see the warnings above")
        _log.info("Averaged stats: %s", "  ".join(f"{key}: {value:.4g}" for key, value in line.items()))
        return {**line, "seconds": round(sums.seconds, 3)}

    @property
    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    # ---- an iteration --------------------------------------------------------------------------------------------

    def _iterate(self, epoch: int, iteration: int, batch: Any, sums: EpochSums) -> None:
        """Forward and backward pass of one batch; its gradient is added to the step's."""
        self._schedule.step(cur_epoch=epoch, cur_step=iteration)
        samples = self._usable(batch, sums)
        if samples is None:
            return
        samples = prepare_sample(samples, cuda_enabled=self._device.type == "cuda")
        samples.update(epoch=epoch, num_iters_per_epoch=len(self._loader), iters=iteration)

        def forward(model: nn.Module) -> dict[str, Any]:
            seed_everything(self._spec.seed, epoch, iteration)
            with torch.autocast(self._device.type, dtype=self._mixed, enabled=self._mixed is not None):
                return _losses(self._task.train_step(model=model, samples=samples))

        found = forward(self._model)
        mean = found["loss"] / self._spec.accum_grad_iters
        (mean if self._scaler is None else self._scaler.scale(mean)).backward()
        self._has_gradient = True
        losses = {key: float(torch.as_tensor(value).detach()) for key, value in found.items()}  # waits for the GPU
        sums.add(losses)
        self._bad_steps.see(losses["loss"], samples, forward)
        self._show(epoch, iteration, losses)

    def _usable(self, batch: Any, sums: EpochSums) -> dict[str, Any] | None:
        """The samples of a batch; None, on all processes, where one of them has none."""
        samples, left_out = self._bad_samples.take_out(batch) if isinstance(batch, Mapping) else (None, 0)
        if self._spec.on_bad_sample == "skip":
            sums.bad_samples = (sums.bad_samples or 0) + left_out
            # A process that made no pass would leave the others waiting for its gradient.
            (nothing,) = distributed.any_of(int(samples is None))
            return None if nothing else samples
        if samples is None:
            raise DataError(f"the training set gave a batch without samples: {batch!r}")
        return samples

    def _show(self, epoch: int, iteration: int, losses: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{losses['loss']:.4f}", lr=f"{self._lr:.3g}", refresh=False)
            self._bar.update(iteration + 1 - self._bar.n)
        if iteration % self._spec.log_freq:
            return
        total = len(self._loader)
        self._scalars({**losses, "lr": self._lr}, epoch * total + iteration)
        if self._bar is None:
            shown = "  ".join(f"{key}: {value:.4f}" for key, value in losses.items())
            _log.info("Train: epoch [%d] [%d/%d]  lr: %.6g  %s", epoch, iteration, total, self._lr, shown)

    # ---- an optimizer step ---------------------------------------------------------------------------------------

    def _end_step(self, epoch: int, done: int, sums: EpochSums) -> None:
        """The optimizer's step, or its leaving out; then what the run does between two steps."""
        own_loss = self._bad_steps.saw_bad_loss
        a_loss, bad, stop = distributed.any_of(int(own_loss), int(self._is_bad()), self._signals.received)
        if self._has_gradient and not bad:
            self._step()
        else:
            self._left_out()
        sums.bad_steps += bad
        self._bad_steps.end_step(bool(bad), epoch, done, elsewhere=bool(a_loss) and not own_loss)
        self._forget()
        total, accumulated, every = len(self._loader), self._spec.accum_grad_iters, self._spec.save_every_steps
        if done == total:
            return  # the epoch is whole: it is saved as such, and the signal heeded, by who runs the epochs
        steps = epoch * (total // accumulated) + done // accumulated
        if stop or (every and steps % every == 0):
            self._save(epoch, done, sums)
        if stop:
            raise Stopped(stop)

    def _is_bad(self) -> bool:
        if self._bad_steps.saw_bad_loss:
            return True
        # Until its scale has come down to 1, a scaler means gradients to overflow, and leaves out such steps itself.
        if self._scaler is not None and self._scaler.get_scale() > 1:
            return False
        return not self._bad_steps.gradients_are_finite()

    def _step(self) -> None:
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()

    def _forget(self) -> None:
        self._optimizer.zero_grad()
        self._has_gradient = False


def _losses(output: Any) -> dict[str, Any]:
    """What `train_step` returns: the loss in LAVIS 1.0.2, the loss and its parts in LAVIS main."""
    loss, parts = output if isinstance(output, tuple) else (output, {})
    return {**parts, "loss": loss}
