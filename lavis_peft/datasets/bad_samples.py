"""Samples that can't be read in training: with `run.on_bad_sample: skip` they are left out, named and counted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from lavis_peft.errors import ConfigError

_log = logging.getLogger(__name__)

#: A batch's entry with the reasons of the samples that were left out of it. Text in a batch, and not an exception,
#: since it comes from a data worker and passes LAVIS's prefetching.
KEY = "bad_samples"


@dataclass(frozen=True, slots=True)
class BadSample:
    """Stands in for a sample that can't be read.

    Args:
        reason: Names the file and the record.
    """

    reason: str


class LeavingOut:
    """A collater that leaves bad samples out. Where none is left, the batch holds nothing but their reasons.

    It wraps the outermost collater: LAVIS's own, of several datasets as one, reduces a batch to the keys that all of
    its samples have.

    Args:
        collate: Makes a batch of samples.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        reasons = [sample.reason for sample in samples if isinstance(sample, BadSample)]
        return {**(self._collate(good) if good else {}), KEY: reasons}


def leave_out(dataset: Dataset[Any]) -> LeavingOut:
    """Have a training set give `BadSample` instead of an error, and the collater that goes with it.

    Args:
        dataset: A dataset of the plugin's, or several in LAVIS's ConcatDataset.

    Raises:
        ConfigError: One of them is LAVIS's own, and ends the run at a bad sample whatever the config says.
    """
    parts = getattr(dataset, "datasets", [dataset])
    foreign = sorted({type(part).__name__ for part in parts if not hasattr(part, "gives_bad_samples")})
    if foreign:
        raise ConfigError(
            f"run.on_bad_sample: skip needs datasets of the plugin's, found {', '.join(foreign)}; use error"
        )
    for part in parts:
        part.gives_bad_samples = True
    return LeavingOut(dataset.collater)


class BadSamples:
    """What one process left out of training; each sample is logged once, however often it comes up again."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def take_out(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any] | None, int]:
        """Separate a batch from the account of what is missing in it.

        Args:
            batch: What the training loader gave.

        Returns:
            The batch without that account, None where no sample is left, and how many were left out.
        """
        rest = dict(batch)
        reasons = rest.pop(KEY, [])
        for reason in reasons:
            if reason not in self._named:
                self._named.add(reason)
                _log.warning("Left out of training: %s", reason)
        return rest or None, len(reasons)
