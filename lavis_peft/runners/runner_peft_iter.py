"""The iteration-based runner for adapters: `runner_peft` over inner epochs of a fixed number of iterations."""

from typing import Any

from lavis_peft.errors import ConfigError
from lavis_peft.runners.loaders import IterationLoader
from lavis_peft.runners.runner_peft import RunnerPeft
from lavis_peft.runners.spec import IterRunSpec


class RunnerPeftIter(RunnerPeft):
    """Trains and scores every `iters_per_inner_epoch` iterations, however long a pass over the data is.

    What other runners call an epoch is an inner epoch here: in the names of checkpoints, in the log, in the learning
    rate's schedule. Passes over the data go on from one inner epoch to the next.
    """

    spec: IterRunSpec

    @property
    def max_epoch(self) -> int:
        """Inner epochs of the whole run."""
        return self.spec.inner_epochs

    @property
    def length(self) -> str:
        """The key that says how long the run is, with its value."""
        return f"run.max_iters={self.spec.max_iters}"

    @property
    def train_loader(self) -> Any:
        """A loader of one inner epoch's iterations."""
        if self._train_loader is None:
            if self.spec.iters_per_inner_epoch is None:
                raise ConfigError("run.iters_per_inner_epoch: needed for training")
            self._train_loader = IterationLoader(super().train_loader, self.spec.iters_per_inner_epoch)
        return self._train_loader
