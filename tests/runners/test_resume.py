"""A run that is interrupted anywhere and goes on ends like one that wasn't: same weights, same log, to the last bit."""

import json
import random
import shutil
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import Dataset, default_collate

import lavis_peft
from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import ConfigError, DiskFull, RunStopped

lavis_peft.register()

from lavis.models.base_model import BaseModel  # noqa: E402  after the plugin made LAVIS importable
from lavis.tasks.base_task import BaseTask  # noqa: E402

from lavis_peft.runners import RUNNERS  # noqa: E402


class Killed(Exception):
    """What a test ends a run with."""


class Kill:
    """Ends the run when it is called for the n-th time, counted from 0."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.at is not None and self.calls > self.at:
            raise Killed

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with two places to be killed at: before it and after it."""

        def wrapped(*arguments: Any, **more: Any) -> Any:
            self()
            result = function(*arguments, **more)
            self()
            return result

        return wrapped


class Noisy(Dataset[Any]):
    """Points with noise from all three generators, drawn as LAVIS's image processors draw: wherever they stand."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.rand(2) + random.random() + float(np.random.rand())
        return {"x": torch.tensor([index / self.size, 1.0]) + noise / 10, "y": torch.tensor([2.0 * index / self.size])}

    def collater(self, samples: list[Any]) -> Any:
        return default_collate(samples)

    def text_lengths(self) -> list[int]:
        return [index * 7 % 5 for index in range(self.size)]


class Small(BaseModel):
    """Frozen weights, dropout, and a layer that trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(2, 16).requires_grad_(False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, 1)

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        found = self.head(self.drop(self.base(samples["x"]).tanh()))
        return {"loss": (found - samples["y"]).square().mean(), "loss_abs": (found - samples["y"]).abs().mean()}


class Measured(BaseTask):
    """Scores by the error, with a draw in it: an evaluation that samples its answers must be the same, too."""

    def train_step(self, model: Any, samples: Any) -> Any:
        found = model(samples)
        return found["loss"], found

    def valid_step(self, model: Any, samples: Any) -> list[float]:
        return [-float(model(samples)["loss"]) + random.random() / 5]

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> list[float]:
        return [value for samples in data_loader for value in self.valid_step(model, samples)]

    def after_evaluation(self, val_result: list[float], split_name: str, epoch: Any) -> dict[str, float]:
        return {"agg_metrics": sum(val_result)}


def make(folder: Path, **run: Any) -> Any:
    section = {
        "runner": "runner_peft",
        "task": "captioning",
        "max_epoch": 3,
        "init_lr": 0.05,
        "batch_size_train": 2,
        "batch_size_eval": 2,
        "num_workers": 0,
        "device": "cpu",
        "lr_sched": "linear_warmup_cosine_per_step_lr",
        "warmup_steps": 2,
        "valid_splits": ["val"],
        "test_splits": ["test"],
        "output_dir": str(folder),
        "tensorboard": False,
        "save_every_steps": 2,
        **run,
    }
    whole = OmegaConf.create({"run": {k: v for k, v in section.items() if v is not None}, "model": {"arch": "small"}})
    cfg = Namespace(run_cfg=whole.run, config=whole, model_cfg=whole.model)
    datasets = {"noisy": {"train": Noisy(11), "val": Noisy(4), "test": Noisy(4)}}
    cls = RUNNERS[section["runner"]]
    return cls(cfg=cfg, task=Measured(), model=Small(), datasets=datasets, job_id="20261122001")


def train(runner: Any, kill: Kill | None = None) -> Any:
    """Train; before and after every iteration, every batch scored and every write of a file, `kill` may strike."""
    strike = kill or Kill()
    runner.task.train_step = strike.around(runner.task.train_step)
    runner.task.valid_step = strike.around(runner.task.valid_step)
    runner.files.save = strike.around(runner.files.save)
    runner.log.line = strike.around(runner.log.line)
    runner.train()
    return runner


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The log's lines without the config and the times."""
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: line[key] for key in line if "seconds" not in key} for line in lines if "config" not in line]


def final_weights(runner: Any) -> list[Any]:
    """The weights in memory."""
    return [parameter.tolist() for parameter in runner.plain_model.parameters()]


def outcome(runner: Any) -> dict[str, Any]:
    """All that a run leaves behind."""
    folder = runner.output_dir
    saved = {path.name: read_checkpoint(path) for path in sorted(folder.glob("*.pth"))}
    return {
        "log": metrics(folder),
        "finished": json.loads((folder / "finished.json").read_text())["metrics"],
        "files": {name: (content["epoch"], content["progress"]) for name, content in saved.items()},
        "weights": {name: {k: v.tolist() for k, v in content["model"].items()} for name, content in saved.items()},
        "optimizer": {name: str(content["optimizer"]) for name, content in saved.items()},
    }


def check_everywhere(tmp_path: Path, every: int = 1, **run: Any) -> None:
    """Kill a run at each place in turn, and go on with it."""
    counted = Kill()
    expected = outcome(train(make(tmp_path / "whole", **run), counted))
    assert counted.calls > 30
    for place in range(1, counted.calls, every):  # at the first, nothing but the config is there
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        with pytest.raises(Killed):
            train(make(folder, **run), Kill(place))
        resumed = train(make(folder, resume_ckpt_path="auto", **run))
        assert outcome(resumed) == expected, f"killed at place {place}"


RUNS: list[tuple[str, int, dict[str, Any]]] = [
    ("plain", 2, {}),
    ("accumulation", 4, {"accum_grad_iters": 2, "save_every_steps": 1}),  # five iterations an epoch: one is left over
    ("early", 5, {"early_stopping": 1, "max_epoch": 6, "seed": 3}),
    ("rarely", 5, {"val_freq": 2, "save_every_steps": None, "keep_checkpoints": 3, "save_freq": 2}),
    ("unvalidated", 4, {"valid_splits": None, "save_last": False}),
    ("grouped", 5, {"group_by_length": True}),
    ("iterations", 5, {"runner": "runner_peft_iter", "max_epoch": None, "max_iters": 16, "iters_per_inner_epoch": 8}),
]


@pytest.mark.parametrize(("every", "run"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_killed_anywhere(every: int, run: dict[str, Any], tmp_path: Path) -> None:
    check_everywhere(tmp_path, every, **run)


def test_killed_again_and_again(tmp_path: Path) -> None:
    expected = outcome(train(make(tmp_path / "whole")))
    kills = 0
    for _ in range(100):
        try:
            runner = train(make(tmp_path / "broken", resume_ckpt_path="auto"), Kill(9))
            break
        except Killed:
            kills += 1
    assert kills > 5
    assert outcome(runner) == expected


def test_data_workers_and_their_number_change_nothing(tmp_path: Path) -> None:
    run = {"max_epoch": 2, "num_workers": 2}
    expected = outcome(train(make(tmp_path / "whole", **run)))
    with pytest.raises(Killed):
        train(make(tmp_path / "broken", **run), Kill(8))
    assert [path.name for path in tmp_path.glob("broken/*/*.pth")] == ["checkpoint_0_2.pth"]
    assert outcome(train(make(tmp_path / "broken", resume_ckpt_path="auto", **run))) == expected
    alone = outcome(train(make(tmp_path / "alone", max_epoch=2)))
    # The scored splits draw here, too, and their workers' draws are torch's; LAVIS's don't draw.
    assert alone["weights"]["checkpoint_1.pth"] == expected["weights"]["checkpoint_1.pth"]


def signalled(runner: Any, at: int, number: int = signal.SIGTERM) -> RunStopped:
    """Train, with a signal in the n-th iteration."""
    step, calls = runner.task.train_step, []

    def stepping(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == at + 1:
            signal.raise_signal(number)
        return step(*arguments, **more)

    runner.task.train_step = stepping
    with pytest.raises(RunStopped) as caught:
        runner.train()
    return caught.value


@pytest.mark.parametrize(
    ("at", "file"), [(0, "checkpoint_0_2.pth"), (3, "checkpoint_0_4.pth"), (4, "checkpoint_0.pth")]
)
def test_a_signal_ends_the_run_after_the_step(at: int, file: str, tmp_path: Path) -> None:
    run = {"accum_grad_iters": 2, "save_every_steps": None}
    expected = outcome(train(make(tmp_path / "whole", **run)))
    stopped = signalled(make(tmp_path / "broken", **run), at)
    assert stopped.exit_code == 75
    (saved,) = tmp_path.glob("broken/*/*.pth")
    assert saved.name == file
    assert str(stopped) == (
        f"SIGTERM: the run is saved in {saved}; to go on with it, start it again with --resume "
        "(run.resume_ckpt_path=auto)"
    )
    assert outcome(train(make(tmp_path / "broken", resume_ckpt_path="auto", **run))) == expected


def test_a_signal_ends_an_evaluation_at_once(tmp_path: Path) -> None:
    expected = outcome(train(make(tmp_path / "whole")))
    runner = make(tmp_path / "broken")
    scored: list[int] = []

    def scoring(*_: Any, **__: Any) -> None:
        scored.append(1)
        signal.raise_signal(signal.SIGUSR1)

    runner.task.valid_step = scoring
    with pytest.raises(RunStopped, match=r"SIGUSR1: the run is saved in .*checkpoint_0.pth"):
        runner.train()
    assert scored == [1]
    assert outcome(train(make(tmp_path / "broken", resume_ckpt_path="auto"))) == expected


def test_a_finished_run_gives_its_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = make(tmp_path)
    found = first.train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = make(tmp_path, resume_ckpt_path="auto")
    assert again.train() == found
    assert "is finished; these are its test metrics" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    run = {"lr_sched": "constant_lr", "warmup_steps": None}
    expected = outcome(train(make(tmp_path / "whole", max_epoch=4, **run)))
    train(make(tmp_path / "short", **run))
    with pytest.raises(ConfigError, match=r"run\.max_epoch was 3 and is 4; .*--allow-config-change run\.max_epoch"):
        make(tmp_path / "short", max_epoch=4, resume_ckpt_path="auto", **run).train()
    changed = {"max_epoch": 4, "resume_ckpt_path": "auto", "allow_config_change": ["run.max_epoch"]}
    assert outcome(train(make(tmp_path / "short", **changed, **run))) == expected


def test_without_a_run_auto_begins_one(tmp_path: Path) -> None:
    expected = outcome(train(make(tmp_path / "whole")))
    assert outcome(train(make(tmp_path / "new", resume_ckpt_path="auto"))) == expected


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(make(tmp_path), Kill(12))
    other = make(tmp_path, resume_ckpt_path="auto")
    other.plain_model.base.weight.data[3, 1] += 1e-6
    with pytest.raises(ConfigError, match=r"weights\.model was \"\w+\" and is \"\w+\""):
        other.train()
    allowed = make(tmp_path, resume_ckpt_path="auto", allow_config_change=["weights.model"])
    allowed.plain_model.base.weight.data[3, 1] += 1e-6
    allowed.train()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = outcome(train(make(tmp_path / "whole", keep_checkpoints=2)))
    with pytest.raises(Killed):
        train(make(tmp_path / "broken", keep_checkpoints=2), Kill(34))
    older, newest = sorted(tmp_path.glob("broken/*/checkpoint_[0-9]*.pth"))
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = train(make(tmp_path / "broken", resume_ckpt_path="auto", keep_checkpoints=2))
    assert f"Passed over: {newest}" in caplog.text
    assert older.name != newest.name
    assert outcome(resumed) == expected


def test_a_checkpoint_within_an_epoch_by_its_path(tmp_path: Path) -> None:
    expected = outcome(train(make(tmp_path / "whole")))
    signalled(make(tmp_path / "broken"), 7)
    (path,) = tmp_path.glob("broken/*/checkpoint_1_3.pth")
    resumed = outcome(train(make(tmp_path / "new", resume_ckpt_path=str(path))))
    assert (resumed["log"], resumed["finished"]) == (expected["log"], expected["finished"])
    # What the first run left stays where it is, except for the best.
    assert {"checkpoint_best.pth", "checkpoint_2.pth"} == set(resumed["weights"])
    assert all(resumed["weights"][name] == expected["weights"][name] for name in resumed["weights"])
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_evaluation_of_the_newest_run(tmp_path: Path) -> None:
    trained = make(tmp_path)
    found = trained.train()
    scored = make(tmp_path, resume_ckpt_path="auto")
    metrics = scored.evaluate(skip_reload=True)
    assert metrics["test"].keys() == found["test"].keys()
    assert scored.output_dir != trained.output_dir
    best = read_checkpoint(trained.files.best)["model"]
    assert torch.equal(scored.plain_model.head.weight, best["head.weight"])
    with pytest.raises(ConfigError, match="no run in .* has a checkpoint to score"):
        make(tmp_path / "empty", resume_ckpt_path="auto").evaluate(skip_reload=True)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_full_disk(goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(tmp_path, on_full_disk="continue" if goes_on else "stop")
    save, calls = runner.files.save, []

    def full(*arguments: Any, **more: Any) -> Path:
        calls.append(1)
        if len(calls) == 3:
            raise DiskFull("checkpoint: can't be written: no space left on the disk")
        return save(*arguments, **more)

    monkeypatch.setattr(runner.files, "save", full)
    if goes_on:
        runner.train()
        assert len(calls) > 5
    else:
        with pytest.raises(DiskFull, match="no space"):
            runner.train()
        assert len(calls) == 3


class OwnLoop(Measured):
    """A task with a training loop of its own."""

    def _train_inner_loop(self, epoch: int, model: Any, data_loader: Any, optimizer: Any, **_: Any) -> dict[str, str]:
        for samples in data_loader:
            model(samples)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": "0.000", "own": "7.000"}


def test_a_loop_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def own(folder: str, **run: Any) -> Any:
        runner = make(tmp_path / folder, **run)
        runner.task = OwnLoop()
        return runner

    whole = own("whole", save_every_steps=None)
    whole.train()
    assert "OwnLoop trains with a loop of its own" in caplog.text
    lines = [line for line in metrics(whole.output_dir) if "train_own" in line]
    assert [line["train_own"] for line in lines] == [7.0] * 3
    assert all(line["train_loss"] > 0 for line in lines)
    broken = own("broken", save_every_steps=None)
    with pytest.raises(Killed):
        train(broken, Kill(7))
    resumed = own("broken", save_every_steps=None, resume_ckpt_path="auto")
    resumed.train()
    assert outcome(resumed) == outcome(whole)


def test_checkpoints_that_found_no_room_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"on_full_disk": "continue", "save_every_steps": None, "max_epoch": 4}
    expected = outcome(train(make(tmp_path / "whole", **run)))
    runner = make(tmp_path / "broken", **run)
    save = runner.files.save

    def small(content: dict[str, Any], best: bool = False, **more: Any) -> Path:
        if content["epoch"] > 0 and not best:
            raise DiskFull("no space")
        return save(content, best=best, **more)

    monkeypatch.setattr(runner.files, "save", small)
    with pytest.raises(Killed):
        train(runner, Kill(60))
    # A best one may be newer than the newest ordinary one.
    assert [path.name for path in tmp_path.glob("broken/*/checkpoint_[0-9]*.pth")] == ["checkpoint_0.pth"]
    assert outcome(train(make(tmp_path / "broken", resume_ckpt_path="auto", **run))) == expected


class Scaled(torch.amp.GradScaler):
    """A loss scaler for the CPU whose scale doesn't change."""

    def __init__(self, scale: float) -> None:
        super().__init__("cpu", init_scale=scale, backoff_factor=1.0 - 1e-9)


@pytest.mark.parametrize(("scale", "bad"), [(4.0, 0), (1.0, 2)])
def test_overflow_is_the_scalers_business_until_its_scale_is_one(
    scale: float, bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make(tmp_path, max_epoch=1)
    scaler = Scaled(scale)
    monkeypatch.setattr(type(runner), "scaler", property(lambda _: scaler))
    passes: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        return gradient * float("inf") if len(passes) in (2, 4) else gradient

    runner.plain_model.head.weight.register_hook(spoil)
    runner.train()
    assert [line["train_bad_steps"] for line in metrics(runner.output_dir) if "train_loss" in line] == [bad]
    assert len(passes) == 5
    assert runner.plain_model.head.weight.isfinite().all()
