"""The iteration-based runner: its checks, the order of its data, and AdaLoRA over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import lavis_peft
from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import ConfigError
from lavis_peft.runners.loaders import IterationLoader, train_loader
from lavis_peft.runners.spec import IterRunSpec, parse_run

lavis_peft.register()

from lavis_peft.cli.running import build_runner  # noqa: E402  after the plugin made LAVIS importable

RunFile = Callable[..., Path]
SECTION = {"task": "t", "runner": "runner_peft_iter", "init_lr": 1e-3, "batch_size_train": 4}
ADALORA = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 0.25, "deltaT": 2, "lora_alpha": 8}


class Numbers(Dataset[Any]):
    """Each sample is its number."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> int:
        return index

    def collater(self, samples: list[int]) -> list[int]:
        return samples


def loader(iterations: int) -> IterationLoader:
    return IterationLoader(train_loader(Numbers(), 2, 0, seed=1, on_gpu=False), iterations)


def inner_epoch(of: IterationLoader, epoch: int) -> list[list[int]]:
    of.set_epoch(epoch, seed=1)
    return list(of)


@pytest.mark.parametrize("iterations", [1, 3, 5, 7, 12])
def test_inner_epochs_walk_on_through_the_data(iterations: int) -> None:
    # Five batches of two to a pass; the eleventh sample of a pass is left out.
    passes = train_loader(Numbers(), 2, 0, seed=1, on_gpu=False)
    expected = []
    for number in range(8):
        passes.set_epoch(number, seed=1)
        expected += list(passes)
    ours = loader(iterations)
    assert len(ours) == iterations
    found = [batch for epoch in range(36 // iterations) for batch in inner_epoch(ours, epoch)]
    assert found == expected[: len(found)]
    assert inner_epoch(loader(iterations), 2) == expected[2 * iterations : 3 * iterations]


def test_iterations_instead_of_epochs() -> None:
    spec = parse_run({**SECTION, "max_iters": 12, "iters_per_inner_epoch": 4}, kind=IterRunSpec)
    assert isinstance(spec, IterRunSpec)
    assert (spec.inner_epochs, spec.training_problems()) == (3, [])
    missing = parse_run(SECTION, kind=IterRunSpec).training_problems()
    assert missing == ["run.max_iters: needed for training", "run.iters_per_inner_epoch: needed for training"]
    (uneven,) = parse_run(
        {**SECTION, "max_iters": 10, "iters_per_inner_epoch": 4}, kind=IterRunSpec
    ).training_problems()
    assert uneven.startswith("run.max_iters: 10 isn't a multiple of run.iters_per_inner_epoch=4")
    with pytest.raises(ConfigError, match=r"run\.max_epoch: counts epochs, but runner_peft_iter counts iterations"):
        parse_run({**SECTION, "max_epoch": 3}, kind=IterRunSpec)
    with pytest.raises(ConfigError, match=r"run\.max_iters: counts iterations, but runner_peft counts epochs"):
        parse_run({**SECTION, "max_iters": 3})


@pytest.fixture
def qformer_lora() -> dict[str, Any]:
    """In place of the LoRA that `run_file` writes into the config."""
    return {"qformer": {**ADALORA, "sublayers": ["self_attention", "cross_attention", "ffn"]}}


@pytest.fixture
def iter_file(run_file: RunFile) -> RunFile:
    """As `run_file`, for twelve iterations in inner epochs of four; a pass over the data is three iterations."""

    def make(**run: Any) -> Path:
        counts = {"max_epoch": None, "max_iters": 12, "iters_per_inner_epoch": 4}
        return run_file(runner="runner_peft_iter", **{**counts, "valid_splits": None, "test_splits": None, **run})

    return make


def run(path: Path, *options: str) -> Any:
    runner = build_runner(str(path), list(options), training=True)
    runner.train()
    return runner


def final(runner: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in runner.plain_model.named_parameters() if p.requires_grad}


def test_adalora_over_iterations_and_resuming_it(iter_file: RunFile) -> None:
    path = iter_file(save_freq=1)
    whole = run(path)
    budget = whole.plain_model.adalora
    assert (type(whole).__name__, budget.steps_done, budget.pools[0].schedule.final_step) == ("RunnerPeftIter", 12, 9)
    assert sum(budget.ranks()) == 2 * 32
    assert sorted(file.name for file in whole.output_dir.glob("*.pth")) == [f"checkpoint_{n}.pth" for n in range(3)]
    for epoch in range(2):
        resumed = run(path, f"run.resume_ckpt_path={whole.output_dir / f'checkpoint_{epoch}.pth'}")
        expected = final(whole)
        assert all(torch.equal(value, expected[name]) for name, value in final(resumed).items())


def test_validation_and_the_best(iter_file: RunFile) -> None:
    runner = run(iter_file(valid_splits=["val"], test_splits=["test"]))
    assert read_checkpoint(runner.output_dir / "checkpoint_best.pth")["epoch"] == 2
    assert (runner.result_dir / "metrics_test.json").is_file()


def test_a_config_is_checked_before_it_runs(iter_file: RunFile) -> None:
    with pytest.raises(ConfigError, match=r"isn't a multiple of run\.iters_per_inner_epoch=5"):
        build_runner(str(iter_file(iters_per_inner_epoch=5)), [], training=True)


def test_a_finished_run_names_its_own_key(iter_file: RunFile) -> None:
    done = run(iter_file())
    path = done.output_dir / "checkpoint_2.pth"
    with pytest.raises(ConfigError, match=r"run\.max_iters=12 ends with epoch 2; raise run\.max_iters to train on"):
        run(iter_file(), f"run.resume_ckpt_path={path}")
