"""What a checkpoint holds, and what it refuses to be loaded into."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lavis_peft.adapters.checkpoint import read_checkpoint, save_atomic
from lavis_peft.errors import CheckpointError
from lavis_peft.runners.checkpoints import (
    Progress,
    identity,
    load_optimizer,
    load_trained,
    read_run_checkpoint,
    restored_progress,
    trained_state,
)


class Small(nn.Module):
    """A frozen layer, one tied to it under a second name, a buffer, and one layer that trains."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = self.frozen
        self.head = nn.Linear(width, 1)
        self.register_buffer("positions", torch.arange(4))


def test_only_what_trains_is_kept() -> None:
    assert sorted(trained_state(Small())) == ["head.bias", "head.weight"]


def test_extra_state_is_kept() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.steps = state["steps"]

    model = nn.Sequential(Counting(1, 1).requires_grad_(False))
    state = trained_state(model)
    assert state == {"0._extra_state": {"steps": 3}}
    load_trained(model, {"model": state}, "x.pth")
    assert model[0].steps == 3


def test_loading_gives_the_same_weights() -> None:
    source, target = Small(), Small()
    load_trained(target, {"model": trained_state(source)}, "x.pth")
    torch.testing.assert_close(target.head.weight, source.head.weight)
    assert not torch.equal(target.frozen.weight, source.frozen.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), r"x\.pth.*missing.*head\.bias"),
        (lambda state: state.update({"other.weight": torch.zeros(1)}), r"x\.pth.*other\.weight"),
        (lambda state: state.update({"head.weight": torch.zeros(1, 9)}), r"x\.pth.*head\.weight"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change: object, message: str) -> None:
    model = Small()
    before = model.head.weight.clone()
    state = {"head.weight": torch.ones(1, 3), "head.bias": torch.ones(1)}
    change(state)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load_trained(model, {"model": state}, "x.pth")
    assert torch.equal(model.head.weight, before)


def test_a_file_of_weights_alone_cannot_be_resumed_from(tmp_path: Path) -> None:
    save_atomic({"model": trained_state(Small())}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no optimizer, epoch; .*load_finetuned"):
        read_run_checkpoint(str(tmp_path / "w.pth"))


def test_an_optimizer_of_another_model() -> None:
    saved = {"optimizer": torch.optim.AdamW(Small().parameters()).state_dict()}
    with pytest.raises(CheckpointError, match=r"x\.pth.*optimizer"):
        load_optimizer(torch.optim.AdamW(nn.Linear(1, 1).parameters()), None, saved, "x.pth")


def test_models_that_are_not_the_plugins_need_no_identity() -> None:
    assert identity(Small()) == {}


@pytest.mark.parametrize("metrics", [[0.0], [-3.0], [math.nan, -3.0], [None, 0.0], [math.inf, 0.0]])
def test_the_first_usable_metric_is_the_best_whatever_its_sign(metrics: list[float | None]) -> None:
    progress = Progress()
    for epoch, metric in enumerate(metrics):
        progress = progress.after(metric, epoch)
    assert (progress.best_metric, progress.best_epoch, progress.stale) == (metrics[-1], len(metrics) - 1, 0)


def test_nan_never_is_the_best_and_equal_is_not_better() -> None:
    progress = Progress()
    for epoch, metric in enumerate([-2.0, math.nan, -2.0, -1.0, -5.0]):
        progress = progress.after(metric, epoch)
    assert progress == Progress(best_metric=-1.0, best_epoch=3, stale=1)


def test_progress_survives_a_checkpoint(tmp_path: Path) -> None:
    progress = Progress(best_metric=0.5, best_epoch=2, stale=1, validated=False)
    save_atomic({"progress": progress.as_dict()}, tmp_path / "c.pth")
    assert restored_progress(read_checkpoint(tmp_path / "c.pth")) == progress
    assert restored_progress({}) == Progress()
