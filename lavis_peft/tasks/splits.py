"""Checks of the splits that a run names against those that its datasets have."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError


def check_joined(datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """See that training sets can share a batch: LAVIS makes all of them as the first one's collater does.

    Args:
        datasets: The datasets by name and split.

    Raises:
        ConfigError: Some repeat a question for each of its answers, and some don't.
    """
    ways = {name: getattr(by_split.get("train"), "every_answer", None) for name, by_split in datasets.items()}
    if set(ways.values()) >= {True, False}:
        together, others = ([name for name, way in ways.items() if way is each] for each in (True, False))
        raise ConfigError(
            f"datasets: train_answers is together for {listing(together)} and not for {listing(others)}, which are "
            "trained on together; give all of them the same"
        )


def check_splits(run: Mapping[str, Any], datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """See that every split that the run names is there.

    Args:
        run: The `run` section.
        datasets: The datasets by name and split.

    Returns:
        The splits that are evaluated.

    Raises:
        ConfigError: With every split that isn't there, or that several datasets have though it is evaluated.
    """
    problems = []
    present = {split for by_split in datasets.values() for split in by_split}
    # Who only evaluates may leave the training data out.
    keys = ("valid_splits", "test_splits") if run.get("evaluate") else ("train_splits", "valid_splits", "test_splits")
    for key in keys:
        for split in run.get(key) or ():
            if split not in present:
                hint = suggestion(split, present)
                problems.append(f"run.{key}: no dataset has a split {split!r}{hint}; there are: {listing(present)}")
    evaluated = list(dict.fromkeys([*(run.get("valid_splits") or ()), *(run.get("test_splits") or ())]))
    # LAVIS joins several datasets for training only, and stops with an assertion on any other split.
    for split in sorted(present - {"train"}):
        holders = [name for name, by_split in datasets.items() if split in by_split]
        if len(holders) > 1:
            problems.append(f"datasets: {listing(holders)} all have a split {split!r}; only `train` may be joined")
    if problems:
        raise ConfigError(problems)
    return evaluated
