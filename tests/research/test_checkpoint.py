"""LoRA as the research code stores and computes it, on given matrices."""

import pytest
import torch
from torch import Tensor, nn

from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.merge import merged_state
from lavis_peft.adapters.spec import AdapterSpec
from lavis_peft.errors import CheckpointError
from lavis_peft.research import checkpoint

R, ALPHA = 2, 8
WEIGHT = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])  # (out, in)
BIAS = torch.tensor([0.5, -0.5])
A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])  # (r, in)
B = torch.tensor([[1.0, 0.0], [2.0, 1.0]])  # (out, r)
X = torch.tensor([[1.0, 2.0, 3.0]])
# By hand: A x = (5, -1); B (A x) = (5, 9); alpha / r = 4; W x + bias = (7.5, 1.5).
Y = torch.tensor([[27.5, 37.5]])


class Part(nn.Module):
    """One linear layer under a name of the Q-Former's."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(3, 2)
        with torch.no_grad():
            self.query.weight.copy_(WEIGHT)
            self.query.bias.copy_(BIAS)


@pytest.fixture
def model() -> nn.Module:
    model = nn.Module()
    model.Qformer = Part()
    options = {"r": R, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    inject(model.Qformer, "qformer", AdapterSpec("adapter", "LORA", (), ("query",), options), "qformer")
    return model


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    found = checkpoint.adopted({"model": state}, model, "old.pth")["model"]
    missing = model.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert not [key for key in missing.missing_keys if "lora_" in key]


def research_lora(x: Tensor) -> Tensor:
    """Its formula: a linear map, and a grouped convolution of one group that B's rows are the filters of."""
    after_a = nn.functional.linear(x, A)
    after_b = nn.functional.conv1d(after_a.T.unsqueeze(0), B.unsqueeze(-1), groups=1).squeeze(0).T
    return nn.functional.linear(x, WEIGHT, BIAS) + after_b * (ALPHA / R)


def test_the_same_numbers_as_its_layer(model: nn.Module) -> None:
    load(model, {"Qformer.query.lora_A": A, "Qformer.query.lora_B": B})
    assert torch.equal(model.Qformer.query(X), Y)
    assert torch.equal(research_lora(X), Y)
    model.eval()
    assert torch.equal(model.Qformer.query(X), Y)
    assert torch.equal(merged_state(model.Qformer)["query.weight"], WEIGHT + ALPHA / R * B @ A)


@pytest.mark.parametrize("folded", [False, True])
def test_a_whole_state_is_told_apart_by_its_frozen_weights(model: nn.Module, folded: bool) -> None:
    """With the LoRA folded in, as after scoring, and without."""
    weight = WEIGHT + ALPHA / R * B @ A if folded else WEIGHT
    state = {"Qformer.query.weight": weight, "Qformer.query.bias": BIAS}
    load(model, {**state, "Qformer.query.lora_A": A, "Qformer.query.lora_B": B})
    assert torch.equal(model.Qformer.query(X), Y)


def test_frozen_weights_of_another_base_are_refused(model: nn.Module) -> None:
    state = {"Qformer.query.weight": WEIGHT + 1, "Qformer.query.bias": BIAS}
    with pytest.raises(CheckpointError, match=r"1 frozen weights are neither .*: Qformer\.query\.base_layer\.weight"):
        load(model, {**state, "Qformer.query.lora_A": A, "Qformer.query.lora_B": B})


@pytest.mark.parametrize("ending", ["lora_{}", "lora_{}.weight", "lora_{}.default.weight"])
def test_names_of_the_wrapped_language_model(ending: str) -> None:
    """peft has had all of these."""
    start = "t5_model.base_model.model.encoder.block.0.layer.0.SelfAttention.q"
    model = nn.Module()
    own = "t5_model.encoder.block.0.layer.0.SelfAttention.q"
    found = checkpoint.adopted({f"{start}.{ending.format('A')}": A, "query_tokens": B}, model, "old.pth")
    assert sorted(found) == ["model"]
    assert sorted(found["model"]) == ["query_tokens", f"{own}.lora_A.default.weight"]


def test_files_of_the_plugin_are_left_alone(model: nn.Module) -> None:
    content = {"model": {"Qformer.query.lora_A.default.weight": A}, "epoch": 1}
    assert checkpoint.adopted(content, model, "new.pth") is content
    assert not checkpoint.is_research({"Qformer.bert.x.weight": A, "t5_proj.bias": B})
