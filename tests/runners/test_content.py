"""What is in a checkpoint that a run goes on from."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from lavis_peft.runners.content import content_problems, missing_entries, optimizer_problems

SUMS = {"totals": {"loss": 3.5}, "counts": {"loss": 2}, "bad_steps": 0, "bad_samples": 1, "seconds": 0.5}
CONTENT = {
    "model": {"a": torch.zeros(1)},
    "optimizer": {"state": {}, "param_groups": []},
    "scaler": None,
    "epoch": 3,
    "iteration": 4,
    "sums": [SUMS, SUMS],
    "bad_in_a_row": 0,
    "config": {"run": {}},
    "progress": {"best_metric": 0.5, "best_epoch": 2, "stale": 1, "validated": True},
    "log_lines": 7,
    "world_size": 2,
    "frozen": {"llm": "00"},
}


def test_a_runs_own_checkpoint_is_right() -> None:
    assert missing_entries(CONTENT) == content_problems(CONTENT) == []
    assert content_problems({"model": {}, "optimizer": {}, "epoch": 0}) == []
    assert content_problems({**CONTENT, "sums": None, "progress": {"validated": True}}) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epoch": "3"}, "its epoch is '3', not a whole number from 0"),
        ({"epoch": True}, "its epoch is True"),
        ({"epoch": -1}, "its epoch is -1"),
        ({"epoch": torch.zeros(2)}, r"its epoch is a tensor \(2,\) of torch\.float32"),
        ({"iteration": 1.0}, "its iteration is 1.0"),
        ({"world_size": 0}, "its world_size is 0, not a whole number from 1"),
        ({"optimizer": [1]}, "its optimizer is"),
        ({"scaler": 5}, "its scaler is 5"),
        ({"config": None}, "its config is None"),
        ({"config": {1: 2}}, "its config is"),
        ({"frozen": {"llm": 1}}, "its frozen is"),
        ({"progress": {"best_metric": float("nan")}}, "its progress is .*best_metric, stale, validated"),
        ({"progress": {"bset_metric": 1}}, "its progress is"),
        ({"sums": [{**SUMS, "counts": {}}]}, "its sums is"),
        ({"sums": [{**SUMS, "totals": {"loss": "x"}}]}, "its sums is"),
        ({"sums": [{}]}, "its sums is"),
        ({"sums": {}}, "its sums is"),
    ],
)
def test_what_no_run_writes_is_named(changes: dict[str, Any], problem: str) -> None:
    (found,) = content_problems({**CONTENT, **changes})
    assert re.match(problem, found)


@pytest.mark.parametrize("key", ["model", "optimizer", "epoch", "config", "frozen", "world_size"])
def test_what_is_missing_is_named(key: str) -> None:
    assert missing_entries({name: value for name, value in CONTENT.items() if name != key}) == [key]


def test_lavis_own_checkpoints_have_less() -> None:
    assert missing_entries({"model": {}, "optimizer": {}, "epoch": 1, "config": {}, "scaler": None}) == []


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """AdamW over a layer, after one step."""
    layer = nn.Linear(3, 2)
    made = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}], lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    made.step()
    return made


def _change(state: dict[str, Any], change: str) -> None:
    first = state["state"][0]
    changes = {
        "no groups": lambda: state.pop("param_groups"),
        "one group less": lambda: state["param_groups"].pop(),
        "a group of more": lambda: state["param_groups"][0]["params"].append(2),
        "a parameter's name": lambda: state["param_groups"][0].update(params=["0"]),
        "a learning rate": lambda: state["param_groups"][0].update(lr="0.1"),
        "betas": lambda: state["param_groups"][0].update(betas=[0.9]),
        "a switch": lambda: state["param_groups"][0].update(amsgrad=3),
        "a shape": lambda: first.update(exp_avg=torch.zeros(3)),
        "a kind": lambda: first.update(exp_avg=torch.zeros(2, 3, dtype=torch.int32)),
        "a number": lambda: first.update(exp_avg=0.5),
        "half of it": lambda: first.pop("exp_avg_sq"),
        "a step": lambda: first.update(step=torch.tensor(float("nan"))),
        "no mapping": lambda: state["state"].update({0: 5}),
        "a stranger": lambda: state["state"].update({9: dict(first)}),
        "no state": lambda: state.update(state=[]),
    }
    changes[change]()


CHANGED = (
    "no groups",
    "one group less",
    "a group of more",
    "a parameter's name",
    "a learning rate",
    "betas",
    "a switch",
    "a shape",
    "a kind",
    "a number",
    "half of it",
    "a step",
    "no mapping",
    "a stranger",
    "no state",
)


@pytest.mark.parametrize("change", CHANGED)
def test_an_optimizer_of_something_else(change: str, optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state_dict()
    assert optimizer_problems(optimizer, state) == []
    _change(state, change)
    (problem,) = optimizer_problems(optimizer, state)
    assert problem


def test_a_parameter_without_a_gradient_has_no_averages(optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state_dict()
    del state["state"][1]
    assert optimizer_problems(optimizer, state) == []
