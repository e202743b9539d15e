"""`lavis-peft report` from the outside: output, files, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lavis_peft.cli import main


def _history(*ranks: int) -> dict[str, Any]:
    """Two layers of rank 4 in a Q-Former, and what they have after step 6 of 10."""
    names = {
        "encoder.layer.0.attention.self.query": "self_attention",
        "encoder.layer.0.output_query.dense": "ffn.query",
    }
    layers = [
        {"part": "qformer", "name": name, "word": word, "layer": 0, "init_r": 4, "price": 10}
        for name, word in names.items()
    ]
    phases = {"total_step": 10, "tinit": 2, "tfinal": 4, "deltaT": 2}
    return {
        "version": 1,
        "unit": "rank",
        "step": 10,
        "layers": layers,
        "pools": [{"parts": ["qformer"], **phases, "initial": 8, "target": 4}],
        "changes": [[6, n, rank] for n, rank in enumerate(ranks)],
        "ranks": list(ranks),
        "importance": [0.5, 0.25],
        "importance_kept": [0.5, 0.5],
    }


def _run(tmp_path: Path, name: str, content: object) -> str:
    folder = tmp_path / name / "result"
    folder.mkdir(parents=True)
    (folder / "adalora_history.json").write_text(json.dumps(content))
    return str(tmp_path / name)


def _report(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["report", *arguments])


def test_one_run(tmp_path: Path) -> None:
    result = _report(_run(tmp_path, "run", _history(3, 1)))
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("self-attention"))
    assert line.split() == ["self-attention", "1", "4", "50.0", "3", "75.0", "30", "75.0", "5.00e-01"]
    written = {path.name for path in (tmp_path / "run" / "report").iterdir()}
    assert {"ranks.json", "ranks.csv", "ranks.txt"} <= written
    assert all(str(tmp_path / "run" / "report" / name) in result.output for name in written)


def test_json_is_the_file(tmp_path: Path) -> None:
    result = _report(_run(tmp_path, "run", _history(3, 1)), "--json", "--output", str(tmp_path / "elsewhere"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "elsewhere" / "ranks.json").read_text())
    assert not (tmp_path / "run" / "report").exists()


def test_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [_run(tmp_path, name, _history(*ranks)) for name, ranks in (("a", (3, 1)), ("b", (2, 2)))]
    result = _report(*runs)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("self-attention"))
    assert line.split() == ["self-attention", "50.0", "75.0", "50.0"]
    compared = json.loads((tmp_path / "lavis-peft-report" / "comparison.json").read_text())
    assert json.loads(_report(*runs, "--json").stdout) == compared


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**_history(3, 1), "version": 9}, "version 9; this lavis-peft reads version 1"),
        ({**_history(3, 1), "ranks": [3]}, "damaged: ranks has 1 entries for 2 layers"),
    ],
)
def test_a_bad_file_is_an_error_and_writes_nothing(content: object, said: str, tmp_path: Path) -> None:
    result = _report(_run(tmp_path, "run", content))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "report").exists()


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    result = _report(str(tmp_path))
    assert result.exit_code == 2
    assert f"{tmp_path}: not a run's folder" in result.stderr


def test_runs_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    other = _history(3, 1)
    other["layers"][1]["name"] = "encoder.layer.0.intermediate_query.dense"
    result = _report(_run(tmp_path, "a", _history(3, 1)), _run(tmp_path, "b", other))
    assert result.exit_code == 2
    assert "a adapts 1 layer that b doesn't: qformer: encoder.layer.0.output_query.dense" in result.stderr


def test_a_run_must_be_named() -> None:
    assert _report().exit_code == 2
