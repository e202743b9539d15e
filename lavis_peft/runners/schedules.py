"""Learning-rate schedules with LAVIS's interface: built by the runner, stepped before every iteration."""

import math
from typing import Any

from torch.optim import Optimizer

from lavis_peft.errors import ConfigError


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class LinearDecayLR:
    """A straight line from `init_lr` to `min_lr`, one value per epoch, without warm-up.

    Epoch e of E trains with ``init_lr - (init_lr - min_lr) * e / E``, as the published Q-Former LoRA runs did.

    Args:
        optimizer: Its groups' `lr` is set.
        max_epoch: Epochs of the whole run.
        min_lr: The value the line reaches after the last epoch.
        init_lr: The first epoch's value.
        warmup_start_lr: Taken because LAVIS's runners pass it; this schedule has no warm-up.
        warmup_steps: As `warmup_start_lr`.
        unused: Whatever else a runner passes to every schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_epoch: int,
        min_lr: float,
        init_lr: float,
        warmup_start_lr: float = -1.0,
        warmup_steps: int = 0,
        **unused: Any,
    ) -> None:
        self.optimizer = optimizer
        self.max_epoch = max_epoch
        self.min_lr = min_lr
        self.init_lr = init_lr

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate of this iteration."""
        _set_lr(self.optimizer, self.init_lr - (self.init_lr - self.min_lr) * cur_epoch / self.max_epoch)


class ConstantLR:
    """`init_lr` throughout, after a linear warm-up inside the first epoch; LAVIS main has it, 1.0.2 doesn't.

    Args:
        optimizer: Its groups' `lr` is set.
        init_lr: The rate.
        warmup_start_lr: Where the warm-up starts; negative means at `init_lr`, which is no warm-up.
        warmup_steps: Iterations of warm-up.
        unused: Whatever else a runner passes to every schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        init_lr: float,
        warmup_start_lr: float = -1.0,
        warmup_steps: int = 0,
        **unused: Any,
    ) -> None:
        self.optimizer = optimizer
        self.init_lr = init_lr
        self.warmup_start_lr = warmup_start_lr if warmup_start_lr >= 0 else init_lr
        self.warmup_steps = warmup_steps

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate of this iteration."""
        done = 1.0 if cur_epoch > 0 else min(1.0, cur_step / max(self.warmup_steps, 1))
        if self.warmup_steps == 0:
            done = 1.0
        _set_lr(self.optimizer, self.warmup_start_lr + (self.init_lr - self.warmup_start_lr) * done)


class LinearWarmupCosinePerStepLR:
    """Linear warm-up, then half a cosine down to `min_lr`, both counted in iterations of the whole run.

    LAVIS's `linear_warmup_cosine_lr` changes the rate once per epoch and warms up inside the first epoch only, which
    suits runs of many epochs; this one suits runs of one or two.

    Args:
        optimizer: Its groups' `lr` is set.
        max_epoch: Epochs of the whole run.
        min_lr: The value after the last iteration.
        init_lr: The value at the end of the warm-up.
        iters_per_epoch: Iterations (micro-batches) in an epoch.
        warmup_start_lr: The rate before the warm-up's first iteration; negative means 0.
        warmup_steps: Iterations of warm-up.
        unused: Whatever else a runner passes to every schedule.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_epoch: int,
        min_lr: float,
        init_lr: float,
        iters_per_epoch: int,
        warmup_start_lr: float = -1.0,
        warmup_steps: int = 0,
        **unused: Any,
    ) -> None:
        self.optimizer = optimizer
        self.min_lr = min_lr
        self.init_lr = init_lr
        self.iters_per_epoch = iters_per_epoch
        self.total = max_epoch * iters_per_epoch
        self.warmup_start_lr = max(warmup_start_lr, 0.0)
        self.warmup_steps = warmup_steps
        if warmup_steps >= self.total:
            raise ConfigError(
                f"run.warmup_steps is {warmup_steps}, but the run has {self.total} iterations "
                f"({max_epoch} epochs of {iters_per_epoch})"
            )

    def lr_at(self, iteration: int) -> float:
        """The rate of an iteration counted from 0 over the whole run."""
        if iteration < self.warmup_steps:
            return self.warmup_start_lr + (self.init_lr - self.warmup_start_lr) * (iteration + 1) / self.warmup_steps
        done = (iteration - self.warmup_steps) / (self.total - self.warmup_steps)
        return self.min_lr + (self.init_lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate of this iteration."""
        _set_lr(self.optimizer, self.lr_at(cur_epoch * self.iters_per_epoch + cur_step))


#: What registration adds to LAVIS's registry; a name that LAVIS has already stays LAVIS's.
SCHEDULES: dict[str, type] = {
    "constant_lr": ConstantLR,
    "linear_decay_lr": LinearDecayLR,
    "linear_warmup_cosine_per_step_lr": LinearWarmupCosinePerStepLR,
}
