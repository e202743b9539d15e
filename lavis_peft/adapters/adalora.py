"""AdaLoRA over a whole model: steps, budgets, the orthogonality term, and the state that checkpoints carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.adapters.budget import Agree, Pool
from lavis_peft.adapters.budget_state import check_state
from lavis_peft.adapters.history import VERSION, RankHistory, is_recorded, summary
from lavis_peft.adapters.schedule import Schedule, schedule_for
from lavis_peft.adapters.triplets import PartTriplets, Slot
from lavis_peft.errors import ConfigError, UserError


class RankBudget(nn.Module):
    """The budgets of a model. It has no parameters; its state is in the model's state dict, as extra state.

    Between two allocations, entries of E that were set to 0 learn on and may return, as in the paper; from the last
    allocation on they are held at 0. A checkpoint holds E as it is, so that a resumed run goes on exactly; one
    written before the last allocation therefore scores with the ranks that returned, too.

    Args:
        slots: All adapted layers, those of a part together.
        options: AdaLoRA's options of each part, completed with defaults.
        shared: One budget for all parts, or one for each.
        unit: What it counts: ``rank`` or ``parameters``.
        where: The adapters section's name, for messages.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        options: Mapping[str, Mapping[str, Any]],
        *,
        shared: bool = False,
        unit: str = "rank",
        where: str = "model.adapters",
    ) -> None:
        super().__init__()
        self.slots = list(slots)
        self.options = {part: dict(each) for part, each in options.items()}
        self.unit = unit
        self.steps_done = 0
        self.history = RankHistory([slot.rank for slot in self.slots])
        parts = {
            name: PartTriplets(list(own), self.options[name]["beta1"], self.options[name]["beta2"])
            for name, own in groupby(self.slots, key=lambda slot: slot.part)
        }
        target_r = {name: self.options[name]["target_r"] for name in parts}
        pooled = [parts] if shared else [{name: part} for name, part in parts.items()]
        self.pools = [Pool(each, target_r, unit) for each in pooled]
        self._where = where
        self._settings: dict[str, Any] | None = None
        self._running = False
        self._passes, self._most_passes = 0, 0
        self._agree: Agree = _as_is
        self._tell: Callable[[int], None] | None = None

    # ---- a run ---------------------------------------------------------------------------------------------------

    def schedules(self, total_step: int) -> tuple[list[Schedule], list[str]]:
        """Each pool's phases in steps, and why a run of this length can't have them.

        Args:
            total_step: Optimizer steps of the whole run.
        """
        firsts = [next(iter(pool.parts)) for pool in self.pools]  # parts of one pool have the same phases
        made = [schedule_for(self.options[part], total_step, f"{self._where}.{part}") for part in firsts]
        return [schedule for schedule, _ in made], [problem for _, found in made for problem in found]

    def start(
        self,
        total_step: int,
        *,
        resumed: bool = False,
        passes_per_step: int = 1,
        agree: Agree | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        """Begin a run, or go on with the one whose state was loaded. `after_step` must be called from then on.

        Args:
            total_step: Optimizer steps of the whole run, those before an interruption among them.
            resumed: Go on from the loaded state; else begin at step 0 with all ranks, whatever was loaded.
            passes_per_step: Forward passes that lead to one optimizer step.
            agree: Makes a mask the same on all processes.
            tell: Called with the step after each allocation.

        Raises:
            ConfigError: The schedule is impossible, or isn't that of the run that is resumed.
        """
        schedules, problems = self.schedules(total_step)
        settings = self._run_settings(schedules)
        if resumed and self._settings not in (None, settings):
            problems.append(
                f"{self._where}: the budget falls over the whole run, so a run is resumed with what it began with, "
                f"{self._settings}; found {settings}; total_step is epochs times optimizer steps per epoch"
            )
        if problems:
            raise ConfigError(problems)
        if not resumed:
            self._forget()
        self._settings = settings
        self._passes, self._most_passes = 0, 2 * passes_per_step
        self._agree, self._tell = agree or _as_is, tell
        for pool, schedule in zip(self.pools, schedules, strict=True):
            pool.start(schedule, self.steps_done)
        self._running = True

    def _forget(self) -> None:
        self.steps_done = 0
        self.history = RankHistory([slot.rank for slot in self.slots])
        for pool in self.pools:
            pool.forget()

    def _run_settings(self, schedules: Sequence[Schedule]) -> dict[str, Any]:
        """What must stay the same over a run, as plain values."""
        pools = {
            pool.name: {**asdict(schedule), "initial": pool.initial, "target": pool.target}
            for pool, schedule in zip(self.pools, schedules, strict=True)
        }
        same = ("beta1", "beta2", "orth_reg_weight")
        parts = {part: {key: float(each[key]) for key in same} for part, each in self.options.items()}
        return {"unit": self.unit, "pools": pools, "parts": parts}

    def check_pass(self) -> None:
        """To be called in each forward pass of training: stops where ranks are never allocated.

        Raises:
            UserError: No run was started, or its optimizer steps don't come here.
        """
        self._passes += 1
        if not self._running or self._passes > self._most_passes:
            raise UserError(
                "peft_type ADALORA: ranks can't be allocated, because nothing tells the budget of the optimizer's "
                "steps; all ranks would train to the end. Set run.runner to runner_peft or runner_peft_iter; a "
                "training loop of one's own calls model.adalora.start(total_step) before and "
                "model.adalora.after_step() after each optimizer step, before the gradients are cleared"
            )

    def penalty(self) -> Tensor:
        """The orthogonality term of the loss: each part's mean deviation times its ``orth_reg_weight``."""
        device = self.slots[0].matrices[0].device
        parts = {name: part for pool in self.pools for name, part in pool.parts.items()}
        # In float32 also under mixed precision: what is measured is small differences from 0 and 1.
        with torch.autocast(device.type, enabled=False):
            terms = [
                self.options[name]["orth_reg_weight"] * part.orthogonality()
                for name, part in parts.items()
                if self.options[name]["orth_reg_weight"]
            ]
            return torch.stack(terms).sum() if terms else torch.zeros((), device=device)

    @torch.no_grad()
    def after_step(self, made: bool = True) -> None:
        """Count an optimizer step, take in its gradients and choose ranks where that is due.

        Args:
            made: False where a loss scaler skipped the step: its gradients aren't finite and aren't looked at, but the
                schedule goes on.
        """
        self.steps_done += 1
        self._passes = 0
        chosen = [pool for pool in self.pools if pool.after_step(self.steps_done, made, self._agree)]
        if any(self._is_recorded(pool) for pool in chosen):
            self.history.record(self.steps_done, self.ranks())
        if chosen and self._tell:
            self._tell(self.steps_done)

    def _is_recorded(self, pool: Pool) -> bool:
        schedule = pool.running_schedule
        falling = schedule.final_step - schedule.tinit
        return schedule.is_fixed(self.steps_done) or is_recorded(self.steps_done, schedule.deltaT, falling)

    @torch.no_grad()
    def finish(self) -> bool:
        """At the end of training: take each pool to its target if it isn't there, however the run ended.

        Returns:
            Whether that was needed.
        """
        early = [pool for pool in self.pools if not pool.running_schedule.is_fixed(self.steps_done)]
        for pool in early:
            pool.allocate(pool.target, self._agree)
        if early:
            self.steps_done = max(pool.running_schedule.final_step for pool in self.pools)
            self.history.record(self.steps_done, self.ranks())
        self._running = False
        return bool(early)

    @property
    def is_fixed(self) -> bool:
        """Whether the choice of ranks is final in every pool."""
        return all(pool.schedule is not None and pool.schedule.is_fixed(self.steps_done) for pool in self.pools)

    def ranks(self) -> list[int]:
        """Each layer's rank after the last allocation."""
        return [rank for pool in self.pools for rank in pool.ranks()]

    def as_history(self) -> dict[str, Any]:
        """The content of ``adalora_history.json``; see `history`."""
        return summary(self.pools, self.history, self.unit, self.steps_done)

    # ---- state ---------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Step count, masks, averages, ``ranknum`` and history, as tensors and plain containers."""
        return {
            "version": VERSION,
            "steps_done": self.steps_done,
            "settings": self._settings,
            "layers": [slot.key for slot in self.slots],
            "ranknum": torch.cat([slot.ranknum.detach() for slot in self.slots]),
            "pools": [pool.state(self.steps_done) for pool in self.pools],
            "history": self.history.state(),
        }

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave.

        Raises:
            CheckpointError: It is of other layers, of another version of this plugin, or damaged.
        """
        check_state(state, self.slots, self.pools)
        self.steps_done, self._settings = state["steps_done"], state["settings"]
        self.history = RankHistory([slot.rank for slot in self.slots])
        self.history.load(state["history"])
        for pool, own in zip(self.pools, state["pools"], strict=True):
            pool.load(own)
        for slot, value in zip(self.slots, state["ranknum"], strict=True):
            slot.ranknum.data.copy_(value)


def _as_is(mask: Tensor) -> Tensor:
    return mask
