"""The runner with its loop, a model of a few numbers, and a task whose metrics are given."""

import json
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import Dataset, default_collate

import lavis_peft
from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import CheckpointError, ConfigError, TrainingDiverged
from lavis_peft.runners import distributed

lavis_peft.register()

from lavis.models.base_model import BaseModel  # noqa: E402  after the plugin made LAVIS importable
from lavis.tasks.base_task import BaseTask  # noqa: E402

from lavis_peft.runners.runner_peft import RunnerPeft  # noqa: E402


class Points(Dataset[Any]):
    """Numbers and their doubles."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([index / 8.0, 1.0])
        return {"x": x, "y": 2 * x[:1]}

    def collater(self, samples: list[Any]) -> Any:
        return default_collate(samples)


class Line(BaseModel):
    """A frozen layer and one that trains; notes the epoch and gradient state of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = torch.nn.Linear(2, 2).requires_grad_(False)
        self.head = torch.nn.Linear(2, 1)
        self.bad: Callable[[int], bool] = lambda number: False
        self.passes = 0
        self.fresh: list[bool] = []

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        gradient = self.head.weight.grad
        self.fresh.append(gradient is None or not gradient.any())
        loss = (self.head(self.base(samples["x"])) - samples["y"]).square().mean()
        self.passes += 1
        return {"loss": loss * math.nan if self.bad(self.passes - 1) else loss}


class Scripted(BaseTask):
    """Gives the metrics it was told to, in turn; the test split's is the head's first weight."""

    def __init__(self, metrics: Sequence[float] = ()) -> None:
        super().__init__()
        self.metrics = list(metrics)
        self.devices: list[bool] = []

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> list[float]:
        self.devices.append(cuda_enabled)
        assert not model.training
        return [float(model.head.weight[0, 0]) for _ in data_loader]

    def after_evaluation(self, val_result: list[float], split_name: str, epoch: Any) -> dict[str, float]:
        return {"agg_metrics": val_result[0] if split_name == "test" else self.metrics.pop(0)}


def make(tmp_path: Path, task: Any = None, datasets: Any = None, **run: Any) -> RunnerPeft:
    section = {
        "runner": "runner_peft",
        "task": "captioning",
        "max_epoch": 3,
        "init_lr": 0.1,
        "batch_size_train": 2,
        "device": "cpu",
        "lr_sched": "linear_decay_lr",
        "output_dir": str(tmp_path / "out"),
        "tensorboard": False,
        **run,
    }
    run_cfg = OmegaConf.create({key: value for key, value in section.items() if value is not None})
    whole = OmegaConf.create({"run": run_cfg, "model": {"load_pretrained": False}})
    cfg = Namespace(run_cfg=whole.run, config=whole, model_cfg=whole.model)
    if datasets is None:
        datasets = {"points": {"train": Points(), "val": Points(4), "test": Points(4)}}
    return RunnerPeft(cfg=cfg, task=task or Scripted(), model=Line(), datasets=datasets, job_id="20261122001")


def log_of(runner: RunnerPeft) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runner.output_dir / "log.txt").read_text().splitlines()]


def files_of(runner: RunnerPeft) -> set[str]:
    return {path.name for path in runner.output_dir.glob("*.pth")}


def weights(runner: RunnerPeft) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in runner.plain_model.head.parameters()])


def test_training_without_validation_keeps_the_last_epoch(tmp_path: Path) -> None:
    runner = make(tmp_path, save_freq=0, test_splits=["test"])
    before = weights(runner).clone()
    metrics = runner.train()
    assert not torch.equal(weights(runner), before)
    assert files_of(runner) == {"checkpoint_2.pth"}
    assert metrics["test"]["agg_metrics"] == pytest.approx(runner.plain_model.head.weight[0, 0].item())
    saved = read_checkpoint(runner.output_dir / "checkpoint_2.pth")
    assert sorted(saved["model"]) == ["head.bias", "head.weight"]
    assert saved["epoch"] == 2
    assert type(saved["config"]["run"]) is dict


@pytest.mark.parametrize(
    ("metrics", "best"), [([-3.0, -1.0, -2.0], 1), ([0.0, 0.0, 0.0], 0), ([math.nan, 0.0, -1.0], 1), ([5, 4, 3], 0)]
)
def test_the_best_epoch_is_kept_and_tested(metrics: list[float], best: int, tmp_path: Path) -> None:
    runner = make(tmp_path, Scripted(metrics), valid_splits=["val"], test_splits=["test"], save_freq=1)
    tested = runner.train()
    assert read_checkpoint(runner.output_dir / "checkpoint_best.pth")["epoch"] == best
    at_best = read_checkpoint(runner.output_dir / f"checkpoint_{best}.pth")["model"]["head.weight"][0, 0]
    assert tested["test"]["agg_metrics"] == pytest.approx(float(at_best))
    assert [line["val_best_epoch"] for line in log_of(runner) if "val_best_epoch" in line][-1] == best
    assert log_of(runner)[-1] == {"epoch": "best", "test_agg_metrics": tested["test"]["agg_metrics"]}
    assert json.loads((runner.result_dir / "metrics_test.json").read_text()) == tested["test"]
    assert runner.task.devices == [False] * 4


def test_without_a_usable_metric_the_last_epoch_is_tested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = make(tmp_path, Scripted([math.nan] * 3), valid_splits=["val"], test_splits=["test"])
    with caplog.at_level(logging.WARNING):
        runner.train()
    assert "checkpoint_best.pth" not in files_of(runner)
    assert "No validation gave a finite metric" in caplog.text
    assert log_of(runner)[-1]["epoch"] == 2


def test_the_log_is_full_precision_and_line_by_line(tmp_path: Path) -> None:
    runner = make(tmp_path, init_lr=3e-7)
    runner.train()
    config, *epochs = log_of(runner)
    assert config["config"]["run"]["init_lr"] == 3e-7
    assert [line["train_lr"] for line in epochs] == pytest.approx([3e-7, 2e-7, 1e-7], rel=1e-12)
    assert all(
        isinstance(line["train_loss"], float) and line["train_loss"] != round(line["train_loss"], 3) for line in epochs
    )


@pytest.mark.parametrize(
    ("run", "epochs"),
    [
        ({"early_stopping": 2}, 4),
        ({"disable_early_stopping": False}, 5),
        ({"disable_early_stopping": True}, 8),
        ({}, 8),
    ],
)
def test_early_stopping(run: dict[str, Any], epochs: int, tmp_path: Path) -> None:
    runner = make(tmp_path, Scripted([1, 2, 2, 1, 1, 1, 1, 1]), valid_splits=["val"], max_epoch=8, **run)
    runner.train()
    assert len([line for line in log_of(runner) if "train_loss" in line]) == epochs
    assert f"checkpoint_{epochs - 1}.pth" in files_of(runner)


@pytest.mark.parametrize(("val_freq", "validated"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (9, [0, 3])])
def test_val_freq_and_the_last_epoch(val_freq: int, validated: list[int], tmp_path: Path) -> None:
    runner = make(tmp_path, Scripted([1.0] * 4), valid_splits=["val"], max_epoch=4, val_freq=val_freq)
    runner.train()
    assert [line["epoch"] for line in log_of(runner) if "val_agg_metrics" in line] == validated


def test_save_last_off(tmp_path: Path) -> None:
    runner = make(tmp_path, Scripted([1, 2, 3]), valid_splits=["val"], save_last=False, save_freq=0)
    runner.train()
    assert files_of(runner) == {"checkpoint_best.pth"}


def test_a_step_without_finite_numbers_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = make(tmp_path)
    runner.plain_model.bad = lambda number: number == 6
    runner.train()
    assert [line["train_bad_steps"] for line in log_of(runner) if "train_loss" in line] == [0, 1, 0]
    assert "Epoch 1, iteration 2: the loss is nan" in caplog.text
    assert weights(runner).isfinite().all()
    assert all(math.isfinite(line["train_loss"]) for line in log_of(runner)[1:])


def test_an_iteration_that_is_left_over_spoils_no_step(tmp_path: Path) -> None:
    # Four iterations an epoch, a step every third: the fourth belongs to none.
    runner = make(tmp_path, accum_grad_iters=3, max_epoch=2)
    runner.plain_model.bad = lambda number: number == 3
    runner.train()
    assert [line["train_bad_steps"] for line in log_of(runner) if "train_loss" in line] == [0, 0]


def test_an_epoch_that_is_too_short_for_a_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a step takes 5 iterations and an epoch has 4, so nothing would be trained"):
        make(tmp_path, accum_grad_iters=5).train()


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    runner = make(tmp_path, save_freq=0, max_bad_steps=2, save_every_steps=1)
    runner.plain_model.bad = lambda number: number >= 6
    with pytest.raises(TrainingDiverged, match=r"2 optimizer steps in a row .*epoch 1, iteration 3: the loss is nan"):
        runner.train()
    # What was saved before the first of them stays, beside what was saved between the two.
    assert files_of(runner) == {"checkpoint_1_2.pth", "checkpoint_1_3.pth"}
    assert weights(runner).isfinite().all()


def test_left_over_gradients_do_not_reach_the_next_epoch(tmp_path: Path) -> None:
    # Four iterations an epoch, a step every third: the fourth's gradient is left over.
    runner = make(tmp_path, accum_grad_iters=3, max_epoch=2)
    runner.train()
    assert runner.plain_model.fresh == [True, False, False, True] * 2


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", Scripted([3, 1, 2, 1]), valid_splits=["val"], max_epoch=4, save_freq=1)
    whole.train()
    resumed = make(
        tmp_path / "b",
        Scripted([2, 1]),
        valid_splits=["val"],
        test_splits=["test"],
        max_epoch=4,
        resume_ckpt_path=str(whole.output_dir / "checkpoint_1.pth"),
    )
    tested = resumed.train()
    # Its log begins with what the first run had measured up to that checkpoint.
    assert [line["epoch"] for line in log_of(resumed) if "train_loss" in line] == [0, 1, 2, 3]
    assert len([line for line in log_of(resumed) if "config" in line]) == 1
    last = read_checkpoint(whole.output_dir / "checkpoint_3.pth")["model"]
    again = read_checkpoint(resumed.output_dir / "checkpoint_3.pth")["model"]
    assert all(torch.equal(last[key], again[key]) for key in last)
    # The best of both halves is the first half's epoch 0: it came along, and it is what was tested.
    best = read_checkpoint(resumed.output_dir / "checkpoint_best.pth")
    assert best["epoch"] == 0
    assert tested["test"]["agg_metrics"] == pytest.approx(float(best["model"]["head.weight"][0, 0]))


def test_a_run_killed_during_validation_is_validated_when_resumed(tmp_path: Path) -> None:
    class Killed(Scripted):
        def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> list[float]:
            if len(self.metrics) == 1:
                raise KeyboardInterrupt
            return super().evaluation(model, data_loader, cuda_enabled)

    killed = make(tmp_path / "a", Killed([1, 9]), valid_splits=["val"], save_freq=0)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert files_of(killed) == {"checkpoint_0.pth", "checkpoint_best.pth"} - {"checkpoint_0.pth"} | {"checkpoint_1.pth"}
    path = str(killed.output_dir / "checkpoint_1.pth")
    resumed = make(tmp_path / "b", Scripted([9, 2]), valid_splits=["val"], resume_ckpt_path=path)
    resumed.train()
    assert [line["epoch"] for line in log_of(resumed) if "val_agg_metrics" in line] == [0, 1, 2]
    assert read_checkpoint(resumed.output_dir / "checkpoint_best.pth")["epoch"] == 1


def test_a_lost_best_checkpoint_is_said_and_looked_for_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = make(tmp_path / "a", Scripted([9, 8]), valid_splits=["val"], max_epoch=2)
    first.train()
    (first.output_dir / "checkpoint_best.pth").unlink()
    changed = {"resume_ckpt_path": str(first.output_dir / "checkpoint_1.pth"), "allow_config_change": "run.max_epoch"}
    resumed = make(tmp_path / "b", Scripted([1, 2]), valid_splits=["val"], max_epoch=4, **changed)
    resumed.train()
    assert "run.max_epoch was 2 and is 4" in caplog.text
    assert "looked for anew" in caplog.text
    assert read_checkpoint(resumed.output_dir / "checkpoint_best.pth")["epoch"] == 3


def test_a_best_checkpoint_that_was_not_written_yet_is_written(tmp_path: Path) -> None:
    first = make(tmp_path / "a", Scripted([9]), valid_splits=["val"], max_epoch=1)
    first.train()
    (first.output_dir / "checkpoint_best.pth").unlink()
    changed = {"resume_ckpt_path": str(first.output_dir / "checkpoint_0.pth"), "allow_config_change": ["run"]}
    resumed = make(tmp_path / "b", Scripted([1, 2]), valid_splits=["val"], **changed)
    resumed.train()
    assert read_checkpoint(resumed.output_dir / "checkpoint_best.pth")["epoch"] == 0


def test_a_finished_run_cannot_be_resumed(tmp_path: Path) -> None:
    done = make(tmp_path, max_epoch=2)
    done.train()
    path = str(done.output_dir / "checkpoint_1.pth")
    with pytest.raises(
        ConfigError, match=r"is of epoch 1, and run\.max_epoch=2 ends with epoch 1; raise run\.max_epoch"
    ):
        make(tmp_path, max_epoch=2, resume_ckpt_path=path).train()


def test_evaluation_scores_the_checkpoint_that_is_given(tmp_path: Path) -> None:
    trained = make(tmp_path)
    trained.train()
    path = str(trained.output_dir / "checkpoint_2.pth")
    runner = make(tmp_path, test_splits=["test"], resume_ckpt_path=path)
    expected = pytest.approx(trained.plain_model.head.weight[0, 0].item())
    assert runner.evaluate(skip_reload=True)["test"]["agg_metrics"] == expected
    both = make(
        tmp_path, Scripted([4.0]), valid_splits=["val"], test_splits=["test"], evaluate=True, resume_ckpt_path=path
    )
    assert both.train()["test"]["agg_metrics"] == expected
    assert files_of(both) == set()
    assert {key for line in log_of(both) for key in line} >= {"val_agg_metrics", "test_agg_metrics"}


def test_random_weights_are_not_scored_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, test_splits=["test"]).evaluate(skip_reload=True)
    assert "random weights are scored" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained = make(tmp_path)
    trained.train()
    path = trained.output_dir / "checkpoint_2.pth"
    content = read_checkpoint(path)
    content["model"]["stranger"] = content["model"].pop("head.bias")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"head\.bias.*stranger"):
        make(tmp_path, resume_ckpt_path=str(path)).train()


def test_splits_that_no_dataset_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, valid_splits=["vla"], test_splits=["test"], datasets={"points": {"train": Points()}})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="train"):
        make(tmp_path, datasets={"points": {"test": Points()}}).train()


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        make(tmp_path).evaluate(skip_reload=True)


def test_nothing_to_train(tmp_path: Path) -> None:
    runner = make(tmp_path)
    runner._model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing in it trains"):
        runner.train()


def test_a_task_without_agg_metrics(tmp_path: Path) -> None:
    class Mute(Scripted):
        def after_evaluation(self, val_result: Any, split_name: str, epoch: Any) -> dict[str, float]:
            return {"accuracy": 1.0}

    with pytest.raises(ConfigError, match="agg_metrics"):
        make(tmp_path, Mute(), valid_splits=["val"]).train()


def test_weight_decay_spares_vectors_biases_and_norms(tmp_path: Path) -> None:
    runner = make(tmp_path, weight_decay=0.2, beta2=0.9)
    decayed, spared = runner.optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(1, 2)]
    assert [tuple(p.shape) for p in spared["params"]] == [(1,)]
    assert (decayed["weight_decay"], spared["weight_decay"], decayed["betas"]) == (0.2, 0.0, (0.9, 0.9))


def test_lavis_own_schedules_work_too(tmp_path: Path) -> None:
    for name, extra in (
        ("linear_warmup_cosine_lr", {}),
        ("linear_warmup_step_lr", {"lr_decay_rate": 0.5}),
        ("constant_lr", {}),
        ("linear_warmup_cosine_per_step_lr", {"warmup_steps": 3}),
    ):
        runner = make(tmp_path, lr_sched=name, max_epoch=2, **extra)
        runner.train()
        assert len(log_of(runner)) == 3


def test_two_runners_in_one_process(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    assert first.output_dir != second.output_dir
    from lavis.common.registry import registry

    assert registry.get_path("result_dir") == str(second.result_dir)


def test_mixed_precision_on_a_cpu_is_said_to_be_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, amp=True, max_epoch=1).train()
    assert "full precision" in caplog.text


def test_one_process_is_not_distributed_whatever_the_yaml_says(tmp_path: Path) -> None:
    runner = make(tmp_path, distributed=True, world_size=8)
    assert runner.use_distributed is False
    assert runner.model is runner.plain_model
    assert distributed.is_main()
