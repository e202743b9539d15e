"""The records of a run."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_peft.errors import MissingExtra
from lavis_peft.runners.logs import RunLog, plain


def test_plain_values() -> None:
    found = plain(
        {
            "a": np.float32(0.5),
            "b": torch.tensor(2),
            "c": float("nan"),
            4: (1, Path("x")),
            "d": np.array([1, 2]),
            "e": True,
        }
    )
    assert found == {"a": 0.5, "b": 2, "c": None, "4": [1, "x"], "d": [1, 2], "e": True}


def test_log_is_readable_line_by_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    log.line({"config": {"a": {"b": 1}}})
    log.line({"train_lr": 1.23456789e-7, "val_x": float("inf")})
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == [{"config": {"a": {"b": 1}}}, {"train_lr": 1.23456789e-7, "val_x": None}]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path, enabled=False, tensorboard=True)
    log.line({"a": 1})
    log.metrics("test", {"a": 1})
    log.scalars("test", {"a": 1}, 1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    RunLog(tmp_path, enabled=True, tensorboard=False).metrics("test", {"accuracy": np.float64(50.0)})
    assert json.loads((tmp_path / "result" / "metrics_test.json").read_text()) == {"accuracy": 50.0}


class Writer:
    """Stands in for TensorBoard's writer, which isn't among the tests' requirements."""

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.seen: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


def test_numbers_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    log = RunLog(tmp_path, enabled=True, tensorboard="auto")
    log.scalars("val", {"accuracy": 50.0, "by_type": {"color": 25.0}, "name": "x", "none": float("nan")}, 3)
    log.close()
    assert log._board.seen == [("val/accuracy", 50.0, 3), ("val/by_type/color", 25.0, 3)]
    assert log._board.closed
    assert log._board.log_dir == str(tmp_path / "tensorboard")


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    RunLog(tmp_path, enabled=True, tensorboard="auto").scalars("val", {"a": 1}, 0)
    with pytest.raises(MissingExtra, match=r"lavis-peft\[tensorboard\]"):
        RunLog(tmp_path, enabled=True, tensorboard=True)


def test_a_log_is_cut_back_to_a_moment(tmp_path: Path) -> None:
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    assert log.length == 0
    for number in range(3):
        log.line({"epoch": number})
    with (tmp_path / "log.txt").open("a") as file:
        file.write('{"epoch": 3, "tra')  # a line that a kill cut off
    assert log.length == 3
    log.cut(5)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n'
    log.cut(2)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_a_log_takes_over_another_ones_lines(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, config in ((old, 1), (new, 2)):
        folder.mkdir()
        RunLog(folder, enabled=True, tensorboard=False).line({"config": config})
    earlier = RunLog(old, enabled=True, tensorboard=False)
    for number in range(3):
        earlier.line({"epoch": number})
    log = RunLog(new, enabled=True, tensorboard=False)
    log.take_over(old, 3)
    log.take_over(tmp_path / "gone", 3)
    assert (new / "log.txt").read_text() == '{"config": 2}\n{"epoch": 0}\n{"epoch": 1}\n'
    RunLog(new, enabled=False, tensorboard=False).cut(0)
    assert log.length == 3
