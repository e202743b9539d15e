"""One budget of rank: which triplets of one part, or of several together, stay at each allocation.

peft's own allocator is not used: it serves one part, walks all parameters by name at each step, keeps its state out of
checkpoints, and misses its last allocation where that step is skipped. Its arithmetic is kept, and compared in tests.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.importance import keep_affordable, keep_top
from lavis_peft.adapters.schedule import Schedule
from lavis_peft.adapters.triplets import PartTriplets, Slot

Agree = Callable[[Tensor], Tensor]


class Pool:
    """A budget and the triplets that compete for it.

    Args:
        parts: The parts that draw on it.
        target_r: Each part's mean rank per layer at the end.
        unit: What is counted: ``rank``, or ``parameters`` as plain LoRA of these ranks has them.
    """

    def __init__(self, parts: Mapping[str, PartTriplets], target_r: Mapping[str, int], unit: str) -> None:
        self.parts = dict(parts)
        self.slots: list[Slot] = [slot for part in self.parts.values() for slot in part.slots]
        self.schedule: Schedule | None = None
        self.scores: Tensor | None = None
        self._unit = unit
        self._ranks = [slot.rank for slot in self.slots]
        self._sizes = [sum(slot.rank for slot in part.slots) for part in self.parts.values()]
        # On the CPU also where the model is built on the meta device.
        with torch.device("cpu"):
            self._owner = torch.repeat_interleave(torch.arange(len(self.slots)), torch.tensor(self._ranks))
            self._prices = torch.tensor([slot.price for slot in self.slots])[self._owner]
            self.mask = torch.ones(sum(self._ranks), dtype=torch.bool)
        each = [slot.price if unit == "parameters" else 1 for slot in self.slots]
        self.initial = sum(size * rank for size, rank in zip(each, self._ranks, strict=True))
        self.target = sum(size * target_r[slot.part] for size, slot in zip(each, self.slots, strict=True))
        self._factors: list[list[Tensor]] = []

    @property
    def name(self) -> str:
        """The parts' names joined by ``+``."""
        return "+".join(self.parts)

    def forget(self) -> None:
        """Back to all triplets and no averages."""
        self.mask, self.scores = torch.ones_like(self.mask), None
        for part in self.parts.values():
            part.forget()

    def start(self, schedule: Schedule, steps_done: int) -> None:
        """Begin or go on.

        Args:
            schedule: The phases.
            steps_done: Steps made before.
        """
        self.schedule = schedule
        for part in self.parts.values():
            part.start()
        if schedule.is_fixed(steps_done):
            self._apply()

    def after_step(self, step: int, made: bool, agree: Agree) -> bool:
        """Take in a step's gradients and choose triplets if it is time.

        Args:
            step: Counted from 1.
            made: Whether the gradients are finite.
            agree: Makes a mask the same on all processes.

        Returns:
            Whether triplets were chosen.
        """
        schedule = self.running_schedule
        if made and step < schedule.final_step:
            for part in self.parts.values():
                part.update()
        if schedule.allocates(step):
            self.allocate(schedule.budget(step, self.initial, self.target), agree)
            return True
        if schedule.is_fixed(step):
            # The optimizer moves what was set to 0, out of its moments and by weight decay.
            for part, factors in zip(self.parts.values(), self._factors, strict=True):
                part.multiply(factors)
        return False

    def allocate(self, budget: int, agree: Agree) -> None:
        """Keep the most important triplets that the budget pays for, and set the E of all others to 0."""
        self.scores = torch.cat([part.scores() for part in self.parts.values()])
        if self._unit == "parameters":
            mask = keep_affordable(self.scores, self._prices, budget)
        else:
            mask = keep_top(self.scores, budget)
        self.mask = agree(mask)
        self._apply()

    def _apply(self) -> None:
        masks = self.mask.split(self._sizes)
        self._factors = [part.apply(mask) for part, mask in zip(self.parts.values(), masks, strict=True)]

    @property
    def running_schedule(self) -> Schedule:
        """The schedule, once the run has begun."""
        if self.schedule is None:
            raise RuntimeError("this budget wasn't started")
        return self.schedule

    @property
    def spent(self) -> int:
        """What the triplets that stay cost, in the budget's unit."""
        return int(self._prices[self.mask].sum() if self._unit == "parameters" else self.mask.sum())

    def ranks(self) -> list[int]:
        """Triplets that stay, per layer."""
        return self._per_layer(self.mask.to(torch.int64))

    def importance(self) -> tuple[list[float | None], list[float | None]]:
        """Each layer's mean importance at the last allocation: of all its triplets, and of those that stay."""
        if self.scores is None:
            return [None] * len(self.slots), [None] * len(self.slots)
        every = self._per_layer(self.scores.double())
        kept = self._per_layer(self.scores.double() * self.mask)
        means = [total / rank for total, rank in zip(every, self._ranks, strict=True)]
        kept_means = [total / rank if rank else None for total, rank in zip(kept, self.ranks(), strict=True)]
        return list(means), kept_means

    def _per_layer(self, values: Tensor) -> list[Any]:
        return torch.zeros(len(self.slots), dtype=values.dtype).index_add_(0, self._owner, values).tolist()

    def state(self, steps_done: int) -> dict[str, Any]:
        """Tensors and plain containers, for the checkpoint. After the last allocation no average is read any more."""
        over = self.schedule is not None and self.schedule.is_fixed(steps_done)
        averages = {} if over else {name: part.averages() for name, part in self.parts.items()}
        return {"mask": self.mask, "scores": self.scores, "averages": averages}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave for the same layers."""
        self.mask, self.scores = state["mask"].cpu().bool(), state["scores"]
        for name, part in self.parts.items():
            part.forget()
            if state["averages"].get(name):
                part.load_averages(state["averages"][name])
