"""A disk that fills up during a run: said in one sentence, nothing half-written left, the last checkpoint kept."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lavis_peft.adapters.checkpoint import read_checkpoint, save_atomic, save_tensors
from lavis_peft.adapters.files import append
from lavis_peft.errors import DiskFull
from lavis_peft.runners.logs import RunLog

resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")

PAGE = 4096
TRAIN = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from lavis_peft.cli import main
main(["train", "--cfg-path", *sys.argv[1:]])
"""


@pytest.fixture
def small_disk(tmp_path: Path, nursery: Any, trained_run: Any) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint and a half, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _train(nursery, tmp_path, _config(trained_run, tmp_path, tmp_path, max_epoch=1, test_splits=[]))
    (checkpoint,) = (tmp_path / "output").rglob("*.pth")
    room = checkpoint.stat().st_size * 3 // 2 + 8 * PAGE
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here; the test with a limit of file sizes runs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _config(run: Any, folder: Path, disk: Path, **keys: Any) -> Path:
    config = yaml.safe_load(run.config.read_text())
    config["model"]["adapters"] = {"qformer": "full"}
    config["run"] |= {"valid_splits": [], "save_freq": 0, "output_dir": str(disk / "output"), **keys}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _train(nursery: Any, folder: Path, *arguments: object, limit: int = 0) -> tuple[int, str]:
    process = nursery.start(TRAIN, folder / f"said{len(list(folder.iterdir()))}.txt", limit, *arguments)
    return process.wait(), process.said()


def _run_folder(disk: Path) -> Path:
    (folder,) = (disk / "output").iterdir()
    return folder


def _check_whole(folder: Path) -> None:
    """Every file can be read, and nothing temporary is left."""
    assert [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")] == []
    for path in folder.glob("*.pth"):
        read_checkpoint(path)
    for line in (folder / "log.txt").read_text().splitlines():
        json.loads(line)


def test_a_run_on_a_full_disk_stops_and_can_be_resumed(
    nursery: Any, trained_run: Any, small_disk: Path, tmp_path: Path
) -> None:
    config = _config(trained_run, tmp_path, small_disk)
    code, said = _train(nursery, tmp_path, config)
    folder = _run_folder(small_disk)
    assert code == 1, said[-3000:]
    message = f"Error: {folder}/checkpoint_1.pth: can't be written: no space left on the disk"
    assert said.count("Error: ") == said.count(message) == 1, said[-3000:]
    assert "Traceback" not in said
    assert [path.name for path in folder.glob("*.pth")] == ["checkpoint_0.pth"]
    _check_whole(folder)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, said = _train(nursery, tmp_path, config, "--resume")
    assert code == 0, said[-3000:]
    assert [path.name for path in folder.glob("*.pth")] == ["checkpoint_1.pth"]
    assert (folder / "finished.json").is_file()
    _check_whole(folder)


def test_a_run_on_a_full_disk_goes_on_where_it_is_told_to(
    nursery: Any, trained_run: Any, small_disk: Path, tmp_path: Path
) -> None:
    code, said = _train(nursery, tmp_path, _config(trained_run, tmp_path, small_disk, on_full_disk="continue"))
    folder = _run_folder(small_disk)
    assert code == 0, said[-3000:]
    assert "checkpoint_1.pth: can't be written: no space left on the disk" in said
    assert [path.name for path in folder.glob("*.pth")] == ["checkpoint_0.pth"]
    assert json.loads((folder / "result" / "metrics_test.json").read_text())["total"] == 4
    _check_whole(folder)


def test_a_run_that_may_not_write_large_files_stops(nursery: Any, trained_run: Any, tmp_path: Path) -> None:
    limit = 500_000
    code, said = _train(nursery, tmp_path, _config(trained_run, tmp_path, tmp_path), limit=limit)
    folder = _run_folder(tmp_path)
    assert code == 1, said[-3000:]
    message = f"Error: {folder}/checkpoint_0.pth: can't be written: the file would be larger than is allowed"
    assert said.count("Error: ") == said.count(message) == 1, said[-3000:]
    assert "Traceback" not in said
    assert list(folder.glob("*.pth")) == []
    _check_whole(folder)


@pytest.fixture
def only_small_files() -> Iterator[None]:
    """No file may grow beyond 10,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("only_small_files")
@pytest.mark.parametrize("size", [2_400, 2_500, 2_600, 5_000, 50_000])
def test_whatever_is_in_the_way_of_the_end(size: int, tmp_path: Path) -> None:
    """In the tensors, in the list of what is in the file, in the last bytes."""
    save_atomic({"old": 1}, tmp_path / "a.pth")
    save_tensors({"old": torch.zeros(1)}, tmp_path / "a.safetensors")
    for save, path in ((save_atomic, tmp_path / "a.pth"), (save_tensors, tmp_path / "a.safetensors")):
        with pytest.raises(DiskFull, match="the file would be larger than is allowed; the one that was there is kept"):
            save({f"{number}": torch.zeros(size // 5) for number in range(5)}, path)
        assert list(read_checkpoint(path)) == ["old"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("only_small_files")
def test_a_line_of_the_log_is_there_or_is_not(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x" * 9_989 + "\n")
    log = RunLog(tmp_path, enabled=True, tensorboard=False)
    log.line({"a": 1})
    before = (tmp_path / "log.txt").read_bytes()
    with pytest.raises(DiskFull, match=r"log\.txt: can't be written"):
        log.line({"b": 2})
    assert (tmp_path / "log.txt").read_bytes() == before
    with pytest.raises(DiskFull):
        append(tmp_path / "new.txt", "y" * 10_001)
    assert (tmp_path / "new.txt").read_bytes() == b""
