"""Numbers gone wrong, and the part of the model that is named for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lavis_peft.errors import TrainingDiverged
from lavis_peft.runners.bad_steps import BadSteps
from lavis_peft.runners.finite import gradients_are_finite, part_of_forward, part_of_gradients, question_ids


class Parts(nn.Module):
    """Three parts in a row, as InstructBLIP has them."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_encoder = nn.Linear(2, 2)
        self.Qformer = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        self.queries = nn.Parameter(torch.ones(2))
        self.llm = nn.ModuleDict({"head": nn.Linear(2, 1)})
        self.spoil = ""

    def all_parts(self) -> dict[str, Any]:
        return {"vision": self.visual_encoder, "query_tokens": self.queries, "qformer": self.Qformer, "llm": self.llm}

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.visual_encoder(x)
        x = self.Qformer(x + self.queries)
        return self.llm["head"](x).mean() * (float("nan") if self.spoil == "loss" else 1.0)


@pytest.mark.parametrize(
    ("spoilt", "part"),
    [
        ("visual_encoder", "the vision encoder: visual_encoder"),
        ("Qformer.0", "the Q-Former: Qformer.0"),
        ("llm.head", "the language model: llm.head"),
    ],
)
def test_the_first_module_that_is_not_finite_is_named(spoilt: str, part: str) -> None:
    model = Parts()
    with torch.no_grad():
        model.get_submodule(spoilt).weight[0, 0] = float("inf")
    assert part_of_forward(model, lambda: model(torch.ones(3, 2))) == part
    assert not any(module._forward_hooks for module in model.modules())


def test_a_mask_of_minus_infinities_is_sound() -> None:
    model = Parts()
    with torch.no_grad():
        model.Qformer[0].bias.fill_(float("nan"))

    def masked() -> None:
        model.Qformer[1](torch.full((2,), float("-inf")))  # tanh makes it finite
        model.Qformer[0](torch.ones(2))

    assert part_of_forward(model, masked) == "the Q-Former: Qformer.0"


def test_a_loss_that_no_module_spoilt() -> None:
    model = Parts()
    model.spoil = "loss"
    assert "in the loss made of their outputs" in part_of_forward(model, lambda: model(torch.ones(1, 2)))


def test_the_gradient_nearest_to_the_loss_is_named() -> None:
    model = Parts()
    model(torch.ones(1, 2)).backward()
    assert gradients_are_finite(model.parameters())
    for name in ("visual_encoder.weight", "queries", "Qformer.0.bias"):
        model.get_parameter(name).grad.fill_(float("nan"))
    assert not gradients_are_finite(model.parameters())
    assert part_of_gradients(model) == "the gradients in the Q-Former: Qformer.0.bias"


def test_no_gradients_at_all_are_finite() -> None:
    assert gradients_are_finite(Parts().parameters())


@pytest.mark.parametrize(
    ("samples", "ids"),
    [
        ({"question_id": ["a", "b"]}, ["a", "b"]),
        ({"instance_id": torch.tensor([3, 4])}, ["3", "4"]),
        ({"image": 1}, []),
    ],
)
def test_ids(samples: dict[str, Any], ids: list[str]) -> None:
    assert question_ids(samples) == ids


def _bad_loss(steps: BadSteps, model: Callable[..., Any]) -> None:
    steps.see(1.0, {"question_id": ["fine"]}, lambda used: used(torch.ones(1, 2)))
    steps.see(float("inf"), {"question_id": ["q7", "q8"]}, lambda used: used(torch.ones(1, 2)))
    assert steps.saw_bad_loss


def test_what_is_said_of_a_bad_step(caplog: pytest.LogCaptureFixture) -> None:
    model = Parts()
    with torch.no_grad():
        model.llm["head"].weight.fill_(float("nan"))
    steps = BadSteps(model, most=2)
    _bad_loss(steps, model)
    steps.end_step(True, epoch=3, done=8)
    assert "Epoch 3, iteration 7: the loss is inf; it begins in the language model: llm.head; samples: q7, q8." in (
        caplog.text
    )
    _bad_loss(steps, model)
    with pytest.raises(
        TrainingDiverged, match=r"2 optimizer steps in a row .*samples: q7, q8; try a lower run.init_lr"
    ):
        steps.end_step(True, 3, 9)


def test_a_good_step_ends_the_row(caplog: pytest.LogCaptureFixture) -> None:
    model = Parts()
    steps = BadSteps(model, most=2)
    model(torch.ones(1, 2)).backward()
    model.queries.grad.fill_(float("inf"))
    for bad in (True, False, True, False):
        steps.see(1.0, {"question_id": ["q1"]}, lambda used: used)
        steps.end_step(bad, 0, 1)
    assert "the gradients in query_tokens: queries aren't finite numbers; samples: q1." in caplog.text
    assert steps.in_a_row == 0
    model.zero_grad()
    steps.end_step(True, 0, 2)
    assert "another process's gradients aren't" in caplog.text
