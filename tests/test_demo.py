"""The demo, in its quick form, as a user starts it: from another folder, all its processes real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from lavis_peft.demo import accuracy_by_kind, blind_guesses


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lavis_peft.cli", "demo", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500, check=False
    )


@pytest.mark.parametrize("llm", ["t5", "vicuna"])
def test_the_quick_demo_runs_every_step(llm: str, tmp_path: Path) -> None:
    if llm == "vicuna" and not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA")
    result = _demo(tmp_path, "--quick", "--json", "--llm", llm, "--output", "out")
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout)
    assert figures["questions"] == 300
    assert figures["merged_differs"] == 0
    assert figures["accuracy_merged"] == figures["accuracy_after"]
    assert figures["trainable"] == figures["trainable_control"] + 61_440  # rank 8 on every sub-layer of the Q-Former
    for name in ("before", "after", "merged", "blind", "shuffled", "control"):
        assert 0 < figures[f"accuracy_{name}"] < 100, name
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == figures
    assert (tmp_path / "out" / "examples.png").stat().st_size > 1000
    assert sorted(path.name for path in (tmp_path / "out" / "merged").iterdir()) == ["merged.pth", "run.yaml"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = _demo(tmp_path, "--quick", "--output", "out")
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_accuracy_is_counted_per_kind() -> None:
    rows = [
        {"question_type": "yes_no/plain", "correct": True},
        {"question_type": "yes_no/negated", "correct": False},
        {"question_type": "color", "correct": True},
    ]
    assert accuracy_by_kind(rows) == {"all": pytest.approx(200 / 3), "yes_no": 50.0, "color": 100.0}


def test_the_blind_guesser_is_the_majority_of_the_training_answers() -> None:
    """What words alone give on this set: 67.0 % of all test questions, 82.5 % of the yes/no ones."""
    from lavis_peft.datasets.easy_vqa import data_dir, read_split

    rows = [
        {"question_id": record.question_id, "question_type": record.question_type, "answer": record.answers[0]}
        for record in read_split(data_dir(), "test")
    ]
    accuracy = accuracy_by_kind(blind_guesses(rows))
    assert accuracy["all"] == pytest.approx(67.0, abs=0.1)
    assert accuracy["yes_no"] == pytest.approx(82.5, abs=0.1)
