"""How far a run has come within an epoch: the sums of its log line, the steps that were left out, the bar."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from lavis_peft.runners import distributed


@dataclass
class EpochSums:
    """What an epoch's log line is made from, of one process.

    In a checkpoint within an epoch it makes the line of the resumed epoch the same to the last bit.

    Args:
        totals: The sum of each loss that was a finite number.
        counts: How many there were.
        bad_steps: Optimizer steps left out for want of finite numbers; the same on all processes.
        bad_samples: Samples left out because they couldn't be read; None where that is an error.
        seconds: Spent so far.
    """

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bad_steps: int = 0
    bad_samples: int | None = None
    seconds: float = 0.0

    def add(self, losses: Mapping[str, float]) -> None:
        """Take in an iteration's losses."""
        for key, value in losses.items():
            if math.isfinite(value):
                self.totals[key] = self.totals.get(key, 0.0) + value
                self.counts[key] = self.counts.get(key, 0) + 1

    def of_all(self) -> list[dict[str, Any]]:
        """Every process's sums as plain values, for a checkpoint; every process must call it."""
        return distributed.gathered(asdict(self))

    @classmethod
    def restored(cls, saved: Sequence[Mapping[str, Any]] | None) -> "EpochSums":
        """This process's sums out of `of_all`'s; where there were more or fewer processes, the first gets all."""
        saved = saved or ()
        if len(saved) == distributed.world_size():
            return cls(**saved[distributed.rank()])
        whole = cls(bad_steps=max((each["bad_steps"] for each in saved), default=0))
        for each in saved if distributed.is_main() else ():
            for key, value in each["totals"].items():
                whole.totals[key] = whole.totals.get(key, 0.0) + value
                whole.counts[key] = whole.counts.get(key, 0) + each["counts"][key]
            if each["bad_samples"] is not None:
                whole.bad_samples = (whole.bad_samples or 0) + each["bad_samples"]
            whole.seconds = each["seconds"]
        return whole

    def line(self) -> dict[str, Any]:
        """The mean of each loss and the counts, over all processes; every process must call it."""
        keys = sorted({key for own in distributed.gathered(sorted(self.totals)) for key in own})
        found = distributed.summed(
            self.bad_samples or 0,
            *(self.totals.get(key, 0.0) for key in keys),
            *(self.counts.get(key, 0) for key in keys),
        )
        totals, counts = found[1 : 1 + len(keys)], found[1 + len(keys) :]
        means = {key: total / count for key, total, count in zip(keys, totals, counts, strict=True)}
        left_out = {} if self.bad_samples is None else {"bad_samples": int(found[0])}
        return {**means, "bad_steps": self.bad_steps, **left_out}


@contextlib.contextmanager
def progress_bar(total: int, title: str, done: int = 0) -> Iterator["tqdm[Any] | None"]:
    """A bar on standard error where that is a terminal, on the main process; else None.

    Args:
        total: Iterations.
        title: Shown before it.
        done: Iterations that were made before.
    """
    if not (distributed.is_main() and sys.stderr.isatty()):
        yield None
        return
    with tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True) as bar:
        yield bar
