"""A run's folder and which checkpoint files stay in it."""

from pathlib import Path

import pytest

from lavis_peft.adapters.checkpoint import save_atomic
from lavis_peft.errors import ConfigError
from lavis_peft.runners.checkpoints import Progress
from lavis_peft.runners.folders import CheckpointFolder, make_run_folder

LAVIS_JOB_ID = "20261122001"


def test_a_run_goes_under_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_run_folder("out/here", "mine")
    assert folder == tmp_path / "out" / "here" / "mine"
    assert (folder / "result").is_dir()


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_run_folder("~/out", "mine") == tmp_path / "out" / "mine"


def test_two_runs_started_at_once_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20261122001500")
    names = [make_run_folder(str(tmp_path), LAVIS_JOB_ID).name for _ in range(3)]
    assert names == ["20261122001500", "20261122001500-2", "20261122001500-3"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output_dir: can't make a folder in .*file"):
        make_run_folder(str(tmp_path / "file"), "mine")


@pytest.mark.parametrize(("save_freq", "left"), [(0, {3}), (2, {0, 2, 3}), (1, {0, 1, 2, 3}), (-1, {3})])
def test_the_newest_and_every_nth_checkpoint_stay(save_freq: int, left: set[int], tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, save_freq)
    for epoch in range(4):
        files.save({"epoch": epoch})
        files.drop(epoch - 1)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint_{epoch}.pth" for epoch in left}


@pytest.mark.parametrize(("best_epoch", "adopted"), [(2, True), (1, False)])
def test_the_best_checkpoint_comes_along_if_it_is_the_one_we_know(
    best_epoch: int, adopted: bool, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    save_atomic({"epoch": 2}, old / "checkpoint_best.pth")
    files = CheckpointFolder(new, 0)
    progress = Progress(best_metric=1.0, best_epoch=best_epoch)
    assert files.adopt_best(str(old / "checkpoint_3.pth"), progress) is adopted
    assert files.best.is_file() is adopted


def test_no_best_checkpoint_beside_the_one_resumed_from(tmp_path: Path) -> None:
    progress = Progress(best_metric=1.0, best_epoch=1)
    assert CheckpointFolder(tmp_path, 0).adopt_best(str(tmp_path / "elsewhere" / "c.pth"), progress) is False
