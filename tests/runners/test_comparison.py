"""What a run may go on with: the same config, and frozen weights with the same fingerprint."""

from typing import Any

import pytest
import torch
from torch import nn

from lavis_peft.errors import ConfigError
from lavis_peft.runners.comparison import check_same, config_differences, known_keys
from lavis_peft.runners.fingerprint import frozen_weights

CONFIG: dict[str, Any] = {
    "model": {"arch": "a", "adapters": {"qformer": {"r": 8, "sublayers": ["ffn"]}}},
    "datasets": {"own": {"prompt": "x"}},
    "run": {"task": "t", "max_epoch": 3, "init_lr": 1e-5, "valid_splits": ["val"], "warmup_steps": None},
}


def changed(**run: Any) -> dict[str, Any]:
    return {**CONFIG, "run": {**CONFIG["run"], **run}}


def test_keys_are_named_with_both_values() -> None:
    other = {**changed(max_epoch=5), "model": {"arch": "a", "adapters": {"qformer": {"r": 4}}}}
    assert config_differences(CONFIG, other) == {
        "model.adapters.qformer.r": (8, 4),
        "model.adapters.qformer.sublayers": (["ffn"], None),
        "run.max_epoch": (3, 5),
    }


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"output_dir": "elsewhere", "device": "cuda", "num_workers": 8, "log_freq": 1, "tensorboard": True},
        {"save_freq": 1, "save_every_steps": 7, "keep_checkpoints": 3, "resume_ckpt_path": "auto", "rank": 1},
        {"init_lr": "1e-5", "seed": 42, "weight_decay": 0.05, "accum_grad_iters": 1},
        {"warmup_steps": 0},
        {"test_splits": ["test"]},
    ],
)
def test_what_changes_nothing_does_not_count(run: dict[str, Any]) -> None:
    assert config_differences(CONFIG, changed(**run)) == {}


def check(other: dict[str, Any], *allowed: str) -> list[str]:
    return check_same(config_differences(CONFIG, other), allowed, known_keys(CONFIG, other), "checkpoint_1.pth")


def test_differences_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check(changed(max_epoch=5, seed=1))
    assert caught.value.where == "checkpoint_1.pth"
    assert caught.value.problems == [
        "run.max_epoch was 3 and is 5; set it back, or allow it with --allow-config-change run.max_epoch",
        "run.seed was 42 and is 1; set it back, or allow it with --allow-config-change run.seed",
    ]


def test_differences_are_allowed_by_key_and_by_section() -> None:
    assert check(changed(max_epoch=5), "run.max_epoch") == ["run.max_epoch was 3 and is 5"]
    assert len(check(changed(max_epoch=5, seed=1), "run")) == 2
    with pytest.raises(ConfigError, match="seed was 42"):
        check(changed(max_epoch=5, seed=1), "run.max_epoch")
    assert check(CONFIG, "run.max_epoch") == []  # allowed, and not made use of


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no key is called 'run.max_epochs' \(did you mean 'run.max_epoch'\?\)"):
        check(CONFIG, "run.max_epochs")


class Model(nn.Module):
    """A frozen part in half precision, and one that trains."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(300, 7).half().requires_grad_(False)
        self.trained = nn.Linear(3, 3)

    def all_parts(self) -> dict[str, nn.Module]:
        return {"llm": self.frozen, "qformer": self.trained}


def test_a_fingerprint_is_of_the_frozen_weights() -> None:
    first = frozen_weights(Model())
    assert list(first) == ["llm"]
    model = Model()
    with torch.no_grad():
        model.trained.weight += 1
    assert frozen_weights(model) == first
    assert frozen_weights(Model(seed=1)) != first


@pytest.mark.parametrize("place", [(0, 0), (6, 299), (3, 151)])
def test_every_bit_counts(place: tuple[int, int]) -> None:
    first, model = frozen_weights(Model()), Model()
    model.frozen.weight.view(torch.int16)[place] ^= 1
    assert frozen_weights(model) != first


def test_names_and_layout_do_not_count() -> None:
    first, model = frozen_weights(Model()), Model()
    model.frozen.weight.data = model.frozen.weight.data.t().contiguous().t()
    assert frozen_weights(model) == first
    other = nn.Module()
    other.renamed = Model().frozen
    assert frozen_weights(other) == {"model": first["llm"]}


def test_dtypes_and_shapes_count() -> None:
    first, model = frozen_weights(Model()), Model()
    model.frozen.weight.data = model.frozen.weight.data.view(300, 7)
    assert frozen_weights(model) != first
    model.frozen.float()
    assert frozen_weights(model) != first
    model.frozen.weight.data = torch.zeros(0, 3)
    assert frozen_weights(model)["llm"]


def test_it_is_the_same_everywhere() -> None:
    """A fixed value: what was fingerprinted on one machine is compared on another."""
    model = nn.Linear(4, 2).requires_grad_(False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(8.0).view(2, 4))
        model.bias.copy_(torch.tensor([1.0, -1.0]))
    assert frozen_weights(model) == {"model": "b9021d836654522be1ac36caba0c2c44"}
