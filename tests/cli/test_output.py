"""Folders that appear only when whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lavis_peft.cli.output import check_folder, whole_folder
from lavis_peft.errors import ConfigError

WRITER = """
import sys, time
from pathlib import Path
from lavis_peft.cli.output import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("half")
    time.sleep(60)
"""


def test_a_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
    assert signal.getsignal(signal.SIGTERM) is handler


def _fail_halfway(output: Path) -> None:
    with whole_folder(output) as partial:
        (partial / "a").write_text("a")
        raise ZeroDivisionError


def test_an_error_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_trace(number: signal.Signals, tmp_path: Path) -> None:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "out")], env=path, stderr=subprocess.DEVNULL
    ) as own:
        for _ in range(600):
            if list(tmp_path.glob(".out.*/half")):
                break
            time.sleep(0.05)
        assert list(tmp_path.glob(".out.*/half"))
        own.send_signal(number)
        code = own.wait(30)
    assert code in (128 + number, -number)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_can_not_even_be_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output .*can't be written to \(.*File name too long\)$"):
        check_folder(tmp_path / ("x" * 300) / "out")
