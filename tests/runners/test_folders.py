"""A run's folder and which checkpoint files stay in it."""

import threading
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.adapters.checkpoint import save_atomic
from lavis_peft.errors import CheckpointError, ConfigError, DiskFull
from lavis_peft.runners import folders
from lavis_peft.runners.checkpoints import Progress
from lavis_peft.runners.folders import CheckpointFolder, make_run_folder, moment

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


def test_runs_racing_for_a_folder_each_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20261122001500")
    count, found = 16, []
    together = threading.Barrier(count)

    def start() -> None:
        together.wait()
        found.append(make_run_folder(str(tmp_path / "output"), LAVIS_JOB_ID).name)

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == count


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output_dir: can't make a folder in .*file"):
        make_run_folder(str(tmp_path / "file"), "mine")
    with pytest.raises(ConfigError, match=r"run\.output_dir: can't make a folder in .*file"):
        make_run_folder(str(tmp_path / "file"), LAVIS_JOB_ID)


def names(folder: Path) -> set[str]:
    return {path.name.removeprefix("checkpoint_").removesuffix(".pth") for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("save_freq", "keep", "left"),
    [
        (0, 1, {"3"}),
        (2, 1, {"0", "2", "3"}),
        (1, 1, {"0", "1", "2", "3"}),
        (-1, 1, {"3"}),
        (0, 3, {"1", "2", "3"}),
        (3, 2, {"0", "2", "3"}),
        (0, 9, {"0", "1", "2", "3"}),
    ],
)
def test_the_newest_and_every_nth_checkpoint_stay(save_freq: int, keep: int, left: set[str], tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, save_freq, keep)
    for epoch in range(4):
        files.save({"epoch": epoch})
        files.save({"epoch": epoch}, best=True)
    assert names(tmp_path) == left | {"best"}


def test_checkpoints_within_an_epoch_come_after_the_one_before_and_before_its_own(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, 1, keep=2)
    for epoch, iteration, left in (
        (0, 9, {"0_9"}),
        (0, 10, {"0_9", "0_10"}),  # by number, not by letter
        (0, 0, {"0_10", "0"}),
        (1, 2, {"0", "1_2"}),
        (1, 4, {"0", "1_2", "1_4"}),  # save_freq keeps the whole epoch
        (1, 0, {"0", "1_4", "1"}),
    ):
        path = files.save({"epoch": epoch, "iteration": iteration})
        assert path == files.of(epoch, iteration)
        assert names(tmp_path) == left


def test_a_later_file_that_was_passed_over_does_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, 0)
    (tmp_path / "checkpoint_7.pth").write_bytes(b"damaged")
    files.save({"epoch": 5})
    files.save({"epoch": 6})
    assert names(tmp_path) == {"6", "7"}
    files.save({"epoch": 7})
    assert names(tmp_path) == {"7"}


def test_nothing_is_removed_before_the_new_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CheckpointFolder(tmp_path, 0)
    files.save({"epoch": 0})

    def full(content: object, path: Path) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr(folders, "save_atomic", full)
    with pytest.raises(DiskFull):
        files.save({"epoch": 1})
    assert names(tmp_path) == {"0"}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint_mine.pth", "checkpoint_0.pth.bak", "checkpoint_0_1_2.pth", "notes.pth"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    CheckpointFolder(tmp_path, 0).save({"epoch": 5})
    assert names(tmp_path) == before | {"5"}


@pytest.mark.parametrize(("epoch", "dropped"), [(2, False), (3, True)])
def test_the_last_epoch_is_dropped_unless_save_freq_keeps_it(epoch: int, dropped: bool, tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, 2)
    files.save({"epoch": epoch})
    files.drop(epoch)
    assert files.of(epoch).exists() is not dropped


def test_moments_are_in_the_order_of_training() -> None:
    assert moment(0, 1) < moment(0, 2) < moment(0) < moment(1, 1) < moment(1)


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


def test_a_run_that_goes_on_in_its_folder_has_its_best_already(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path, 0)
    files.save({"epoch": 2}, best=True)
    before = files.best.stat().st_ino
    assert files.adopt_best(str(tmp_path / "checkpoint_3.pth"), Progress(best_metric=1.0, best_epoch=2)) is True
    assert files.best.stat().st_ino == before


def test_a_best_checkpoint_of_another_model_is_not_taken(tmp_path: Path) -> None:
    def check(content: dict[str, Any], source: str) -> None:
        raise CheckpointError(f"{source}: belongs to another model")

    save_atomic({"epoch": 2}, tmp_path / "old" / "checkpoint_best.pth")
    files = CheckpointFolder(tmp_path / "new", 0)
    with pytest.raises(CheckpointError, match=r"checkpoint_best\.pth: belongs to another model"):
        files.adopt_best(str(tmp_path / "old" / "checkpoint_3.pth"), Progress(best_metric=1.0, best_epoch=2), check)
    assert not files.best.exists()


def test_no_best_checkpoint_beside_the_one_resumed_from(tmp_path: Path) -> None:
    progress = Progress(best_metric=1.0, best_epoch=1)
    assert CheckpointFolder(tmp_path, 0).adopt_best(str(tmp_path / "elsewhere" / "c.pth"), progress) is False
