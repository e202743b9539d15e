"""`lavis-peft experiments` from the outside."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import lavis_peft
from lavis_peft.cli import main

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["experiments", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few questions as `lavis-peft prepare scienceqa` writes them."""
    files = {}
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        records = []
        for number in range(count):
            color = list(COLORS)[number % 2]
            name = f"{split}{number}.png"
            Image.new("RGB", (64, 64), COLORS[color]).save(tmp_path / name)
            records.append({"image": name, "question": "what color is it?", "choices": list(COLORS), "answer": color})
        files[split] = {"storage": str(tmp_path / f"{split}.json")}
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    section = {"build_info": {"annotations": files, "images": {"storage": str(tmp_path)}}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"datasets": {"scienceqa_peft": section}}))
    return tmp_path


def test_list() -> None:
    lines = _invoke("list").stdout.splitlines()
    assert len(lines) == 1 + 64 + 4
    assert lines[6].split("  ")[-1].strip() == "2e-5* × 5"
    assert lines[6].split()[:2] == ["6", "LLM"]
    assert "2e-5 × 10" in lines[6]
    chosen = json.loads(_invoke("list", "--llm", "vicuna", "--part", "qformer", "--json").stdout)
    assert [entry["id"] for entry in chosen] == [str(number) for number in range(45, 61)]
    assert chosen[0]["adapters"]["qformer"]["sublayers"] == ["ffn"]


def test_show_needs_no_data() -> None:
    found = _invoke("show", "28", "--dataset", "iconqa", "--options", "run.seed=7", "run.max_epoch=2")
    config = yaml.safe_load(found.stdout)
    assert (config["run"]["seed"], config["run"]["max_epoch"]) == (7, 2)
    assert config["datasets"]["iconqa_peft"]["build_info"]["images"]["storage"] == "PREPARED_DIR/images"
    assert "# Changed: run.max_epoch=2" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "99"], "experiment '99': unknown"),
        (["show", "28", "--dataset", "coco"], "'coco' is not one of"),
        (["show", "28", "--options", "run"], "must be KEY=VALUE"),
        (["run", "28", "--dataset", "iconqa", "--data", "."], "describes: scienceqa_peft"),
        (["run", "28", "--data", "."], "--dataset"),
        (["table", "nothing"], "no such folder"),
        (["table", ".", "--output", "x.txt"], "must end in .md or .csv"),
    ],
)
def test_mistakes(arguments: list[str], said: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    found = _invoke(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert said in found.stderr


def test_a_folder_without_runs(tmp_path: Path) -> None:
    found = _invoke("table", tmp_path)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "no finished run" in found.stderr


def test_run_then_table(data: Path) -> None:
    """The whole of an experiment on the tiny model, in a process of its own as users start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(lavis_peft.__file__).parents[1]), *sys.path])
    options = ["run.max_epoch=1", "run.batch_size_train=4", "run.num_workers=0", "run.device=cpu"]
    command = [sys.executable, "-m", "lavis_peft.cli", "experiments", "run", "28", "--dataset", "scienceqa"]
    command += ["--data", str(data), "--seed", "5", "--tiny", "--json", "--options", *options]
    found = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout)
    folder = data / "output" / "paper" / "scienceqa" / "28" / "seed_5"
    assert Path(answer["output_dir"]).parent == folder
    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert (written["run"]["max_epoch"], written["run"]["init_lr"]) == (1, 5e-4)

    table = _invoke("table", data / "output", "--json", "--output", data / "t.md", "--output", data / "t.csv")
    assert table.exit_code == 0, table.output
    (cell,) = json.loads(table.stdout)
    assert (cell["id"], cell["seeds"], cell["mean"]) == ("28", [5], answer["test"]["agg_metrics"])
    assert cell["changes"] == ["model.model_type: tiny", "run.max_epoch: 1", "batch: 4"]
    assert "ScienceQA, r 8" in (data / "t.md").read_text()
    assert (data / "t.csv").read_text().startswith("id,setting,")


def test_dry_run(data: Path) -> None:
    lavis_peft.register()
    found = _invoke(
        "run", "adalora-t5", "--dataset", "scienceqa", "--data", data, "--output", data / "out", "--dry-run"
    )
    assert found.exit_code == 0, found.output
    assert yaml.safe_load(found.stdout)["model"]["adapters"]["qformer"]["peft_type"] == "ADALORA"
    assert not (data / "out").exists()
    found = _invoke("run", "28", "--dataset", "scienceqa", "--data", data, "--dry-run", "--options", "run.tsk=1")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "run.tsk: unknown key" in found.stderr
