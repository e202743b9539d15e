"""The run section's checks; no LAVIS here."""

from typing import Any

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.runners.spec import RESEARCH_PATIENCE, parse_run

TRAINING = {"task": "t", "max_epoch": 2, "init_lr": 1e-3, "batch_size_train": 4}


def problems(**section: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_run({**TRAINING, **section})
    return caught.value.problems


def test_what_is_left_out_gets_lavis_defaults() -> None:
    spec = parse_run(TRAINING)
    assert (spec.seed, spec.evaluate, spec.weight_decay, spec.beta2, spec.val_freq) == (42, False, 0.05, 0.999, 1)
    assert spec.training_problems() == []


def test_numbers_may_be_text_as_in_lavis_yamls() -> None:
    spec = parse_run({**TRAINING, "init_lr": "1e-5", "max_epoch": "3"})
    assert (spec.init_lr, spec.max_epoch) == (1e-5, 3)


def test_null_means_the_default() -> None:
    assert parse_run({**TRAINING, "val_freq": None, "resume_ckpt_path": None}).val_freq == 1


def test_all_problems_come_at_once_and_a_typo_is_recognised() -> None:
    found = problems(max_epohc=3, min_lr="low", evaluate="yes", max_epoch=2.5, valid_splits="val", device="gpu")
    assert len(found) == 6
    assert "run.max_epohc: unknown key (did you mean 'max_epoch'?)" in found[0]
    for part in (
        "min_lr: must be a number",
        "true or false",
        "whole number, found 2.5",
        "[val]",
        "cuda:N, found 'gpu'",
    ):
        assert any(part in line for line in found), part


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("max_epoch", 0, "at least 1"),
        ("init_lr", 0, "above 0"),
        ("batch_size_train", -1, "at least 1"),
        ("beta2", 1, "between 0 and 1"),
        ("accum_grad_iters", 0, "at least 1"),
        ("num_workers", True, "a whole number"),
        ("tensorboard", "yes", "true, false or auto"),
    ],
)
def test_values_out_of_range(key: str, value: Any, must: str) -> None:
    assert problems(**{key: value}) == [f"run.{key}: must be {must}, found {value!r}"]


def test_the_task_must_be_named() -> None:
    assert problems(task=None) == ["run.task: missing"]


def test_keys_of_lavis_tasks_pass_and_keys_of_other_tasks_must_be_declared() -> None:
    parse_run({**TRAINING, "num_beams": 5, "prompt": "", "dist_url": "env://", "world_size": 1})
    assert "my_key" in problems(my_key=1)[0]
    parse_run({**TRAINING, "my_key": 1}, extra_keys=["my_key"])


@pytest.mark.parametrize("key", ["max_iters", "train_dataset_ratios", "lr_layer_decay"])
def test_what_an_epoch_runner_cannot_honour_is_refused(key: str) -> None:
    assert problems(**{key: 1})[0].startswith(f"run.{key}: ")


@pytest.mark.parametrize(
    ("section", "patience"),
    [
        ({}, 0),
        ({"early_stopping": 4}, 4),
        ({"early_stopping": 0}, 0),
        ({"disable_early_stopping": False}, RESEARCH_PATIENCE),
        ({"disable_early_stopping": True}, 0),
        ({"disable_early_stopping": False, "early_stopping": 2}, 2),
    ],
)
def test_early_stopping_in_both_spellings(section: dict[str, Any], patience: int) -> None:
    assert parse_run({**TRAINING, **section}).patience == patience


def test_contradicting_early_stopping() -> None:
    assert "keep one of them" in problems(early_stopping=2, disable_early_stopping=True)[0]


def test_what_training_needs() -> None:
    spec = parse_run({"task": "t", "early_stopping": 2, "lr_sched": "linear_warmup_step_lr", "train_splits": ["val"]})
    text = "\n".join(spec.training_problems())
    for key in ("max_epoch", "init_lr", "batch_size_train", "lr_decay_rate", "early_stopping", "train_splits"):
        assert f"run.{key}" in text


@pytest.mark.parametrize(("splits", "decisive"), [(["dev", "val"], "val"), (["dev", "x"], "dev"), ([], None)])
def test_the_split_that_picks_the_best_epoch(splits: list[str], decisive: str | None) -> None:
    assert parse_run({**TRAINING, "valid_splits": splits}).decisive_split == decisive
