"""Which files and folders are taken for the history of a run, and what is said of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.adapters.history_file import read_history
from lavis_peft.errors import DataError

History = Callable[..., dict[str, Any]]
RunFolder = Callable[..., Path]


def test_a_whole_file_is_read(by_hand: History, run_folder: RunFolder) -> None:
    assert read_history(run_folder(by_hand())) == by_hand()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"),
        ([], "not a JSON object"),
        ({}, "no version number"),
        ({"version": 2}, "version 2; this lavis-peft reads version 1"),
        ({"unit": "bytes"}, "unit 'bytes' is none of rank, parameters"),
        ({"step": None}, "no step number"),
        ({"changes": ...}, "no list 'changes'"),
        ({"layers": []}, "no adapted layer"),
        ({"layers": [{"part": "qformer"}] * 3}, r"layers\[0\]: name, word, init_r, price, layer missing or wrong"),
        ({"pools": [{"parts": ["qformer"]}]}, r"pools\[0\]: initial, target missing or wrong"),
        ({"pools": []}, "part 'qformer' belongs to 0 pools"),
        ({"ranks": [4, 2]}, "ranks has 2 entries for 3 layers"),
        ({"ranks": [4, 2, 1]}, "ranks are not what the changes lead to"),
        ({"changes": [[4, 7, 1]]}, r"changes\[0\] \[4, 7, 1\] can't be"),
        ({"changes": [[4, 1, 1], [2, 1, 0]]}, r"changes\[1\] \[2, 1, 0\] can't be"),
        ({"changes": [[4, 1, 5]]}, r"changes\[0\] \[4, 1, 5\] can't be"),
        ({"changes": [[4, 1]]}, r"changes\[0\] is not \[step, layer, rank\]"),
        ({"importance": [float("nan"), 0, 0]}, "neither a finite number nor null"),
    ],
)
def test_a_damaged_file_is_refused(content: Any, said: str, by_hand: History, run_folder: RunFolder) -> None:
    if isinstance(content, dict) and content:
        content = {key: value for key, value in by_hand(**content).items() if value is not ...}
    with pytest.raises(DataError, match=said) as caught:
        read_history(run_folder(content))
    assert "adalora_history.json" in str(caught.value)


def test_what_is_no_run_with_adalora_is_refused(by_hand: History, run_folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_history(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a run's folder"):
        read_history(tmp_path)
    (tmp_path / "lora" / "result").mkdir(parents=True)
    with pytest.raises(DataError, match="this run had no AdaLoRA"):
        read_history(tmp_path / "lora")
    folder = run_folder(by_hand())
    with pytest.raises(DataError, match=f"give the run's own, {folder}$"):
        read_history(folder / "result")
