from types import SimpleNamespace

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.tasks.splits import check_joined, check_splits


def test_the_evaluated_splits_are_returned_once():
    run = {"train_splits": ["train"], "valid_splits": ["val"], "test_splits": ["val", "test"]}
    assert check_splits(run, {"a": {"train": 1, "val": 2, "test": 3}, "b": {"train": 1}}) == ["val", "test"]
    assert check_splits({"train_splits": ["train"]}, {"a": {"train": 1}}) == []


def test_absent_splits_are_named_together():
    run = {"train_splits": ["trian"], "test_splits": ["test"]}
    with pytest.raises(ConfigError) as error:
        check_splits(run, {"a": {"train": 1, "val": 2}})
    assert error.value.problems == [
        "run.train_splits: no dataset has a split 'trian' (did you mean 'train'?); there are: train, val",
        "run.test_splits: no dataset has a split 'test'; there are: train, val",
    ]


def test_evaluation_needs_no_training_data():
    run = {"train_splits": ["train"], "test_splits": ["test"], "evaluate": True}
    assert check_splits(run, {"a": {"test": 1}}) == ["test"]


def test_only_training_sets_can_be_joined():
    with pytest.raises(ConfigError, match="datasets: a, b all have a split 'test'; only `train` may be joined"):
        check_splits({}, {"a": {"train": 1, "test": 2}, "b": {"train": 1, "test": 2}})


def test_training_sets_that_are_joined_make_their_batches_alike():
    repeats, draws = ({"train": SimpleNamespace(every_answer=each)} for each in (True, False))
    for alike in ({"a": repeats, "b": repeats}, {"a": draws, "b": draws, "c": {"train": object()}}, {"a": repeats}):
        check_joined(alike)
    expected = "train_answers is together for b and not for a, c, which are trained on together"
    with pytest.raises(ConfigError, match=expected):
        check_joined({"a": draws, "b": repeats, "c": draws})
