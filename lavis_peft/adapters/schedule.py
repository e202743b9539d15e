"""When AdaLoRA acts and how much rank it leaves: the phases of a run, and the cubic fall of the budget.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023 (arXiv 2303.10512), section
3.3, with the step counting of peft: steps are optimizer steps, the first of them is number 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True)
class Schedule:
    """The three phases of a run: full budget, falling budget, target budget.

    Args:
        total_step: Optimizer steps of the whole run.
        tinit: Steps with the full budget, at the start.
        tfinal: Steps with the target budget and a fixed choice of ranks, at the end.
        deltaT: Steps between two allocations while the budget falls.
    """

    total_step: int
    tinit: int
    tfinal: int
    deltaT: int

    @property
    def final_step(self) -> int:
        """The step of the last allocation, which leaves the target and holds until the end."""
        return self.total_step - self.tfinal

    def budget(self, step: int, initial: int, target: int) -> int:
        """What may stay after a step.

        Args:
            step: Counted from 1.
            initial: The budget at the start, in ranks or parameters.
            target: The budget at the end, in the same unit.
        """
        if step <= self.tinit:
            return initial
        if step >= self.final_step:
            return target
        left = 1 - (step - self.tinit) / (self.final_step - self.tinit)
        return int((initial - target) * left**3 + target)

    def allocates(self, step: int) -> bool:
        """Whether ranks are chosen anew after a step."""
        falling = self.tinit < step < self.final_step
        return step == self.final_step or (falling and step % self.deltaT == 0)

    def is_fixed(self, step: int) -> bool:
        """Whether the choice of ranks is final after a step."""
        return step >= self.final_step

    def describe(self) -> str:
        """The phases in steps, for the log."""
        return (
            f"steps 1-{self.tinit} full budget, {self.tinit + 1}-{self.final_step} falling "
            f"(every {self.deltaT} steps), {self.final_step + 1}-{self.total_step} target"
        )


def in_steps(value: object, total_step: int) -> int:
    """A phase's length in steps.

    Args:
        value: A whole number of steps, or a fraction of all steps below 1; checked already.
        total_step: Optimizer steps of the whole run.
    """
    return round(value * total_step) if isinstance(value, float) else cast(int, value)


def schedule_for(options: Mapping[str, Any], total_step: int, where: str) -> tuple[Schedule, list[str]]:
    """The schedule of a run, and why it can't be.

    Args:
        options: ``tinit``, ``tfinal`` and ``deltaT``, checked one by one already.
        total_step: Optimizer steps of the whole run.
        where: The part's full key.
    """
    tinit, tfinal = in_steps(options["tinit"], total_step), in_steps(options["tfinal"], total_step)
    schedule = Schedule(total_step, tinit, tfinal, options["deltaT"])
    if tinit + tfinal < total_step:
        return schedule, []
    return schedule, [
        f"{where}: tinit={options['tinit']} and tfinal={options['tfinal']} are {tinit} and {tfinal} steps, but the run "
        f"has only {total_step} optimizer steps, so the budget has no step to fall in; shorten them or train longer"
    ]


def problems_of_ranks_and_phases(options: Mapping[str, object], where: str) -> list[str]:
    """What is impossible whatever the run's length.

    Args:
        options: AdaLoRA's options, completed with peft's defaults.
        where: The part's full key.
    """
    problems = []
    initial, target = cast(int, options["init_r"]), cast(int, options["target_r"])
    if target > initial:
        problems.append(f"{where}.target_r: {target} is more than init_r={initial}; ranks can only be taken away")
    fractions = [value for value in (options["tinit"], options["tfinal"]) if isinstance(value, float)]
    if sum(fractions) >= 1:
        problems.append(f"{where}: tinit and tfinal are the whole run together; the budget has no step to fall in")
    return problems
