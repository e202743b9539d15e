"""The command `prepare`, and its output in `train` and `evaluate`."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from lavis_peft.cli import main
from lavis_peft.cli.prepare import NAMES
from lavis_peft.prepare import BENCHMARKS

Download = Callable[..., Path]

#: Both commands for every benchmark in one process: importing LAVIS takes most of the time.
TRAIN_AND_EVALUATE = """
import contextlib, io, json, sys
from pathlib import Path
from lavis_peft.cli import main

def run(*arguments):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            main(list(arguments))
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments}: exit code {end.code}")
    return said.getvalue()

answers = {}
for name in sys.argv[1:]:
    run("train", "--cfg-path", f"{name}.yaml")
    (folder,) = Path("output", name).iterdir()
    best = f"run.resume_ckpt_path={folder / 'checkpoint_best.pth'}"
    said = run("evaluate", "--cfg-path", f"{name}.yaml", "--options", best, "--json")
    trained = json.loads((folder / "result" / "metrics_test.json").read_text())
    answers[name] = {"trained": trained, "evaluated": json.loads(said[said.index("{"):])["test"]}
print("ANSWERS", json.dumps(answers))
"""
#: Each benchmark's task and the metrics that it must have.
TASKS = {
    "scienceqa": ("multiple_choice_vqa", {"accuracy", "accuracy_by_group"}),
    "iconqa": ("multiple_choice_vqa", {"accuracy", "accuracy_by_group"}),
    "vizwiz": ("vqa_accuracy_peft", {"accuracy", "accuracy_by_group"}),
    "flickr30k": ("captioning_peft", {"CIDEr"}),
}


def test_the_names_are_the_benchmarks() -> None:
    assert set(NAMES) == set(BENCHMARKS)


def test_text_and_json(official_download: Download, tmp_path: Path) -> None:
    arguments = ["prepare", "iconqa", "--source", str(official_download("iconqa")), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "train: 6 multi-text-choice questions (published: 18,946)"
    assert lines[3] == "images: 12 of 12 decoded"
    assert lines[-1] == f"  {tmp_path / 'out' / 'dataset.yaml'}"
    assert "Warning: train: 6 multi-text-choice questions, published are 18,946" in found.stderr

    content = json.loads(CliRunner().invoke(main, [*arguments, "--skip-image-check", "--json"]).stdout)
    assert content["dataset"] == "iconqa_peft"
    assert content["counts"]["val"] == {"found": 3, "published": 6316, "dropped": 0}
    assert content["images"]["decoded"] is False


def test_what_is_left_out_is_said(official_download: Download, tmp_path: Path) -> None:
    source = official_download("vizwiz", sizes={"train": 14, "val": 2, "test": 2})
    for number in range(12):
        (source / "train" / f"VizWiz_train_{number:08d}.jpg").write_bytes(b"no picture")
    arguments = ["prepare", "vizwiz", "--source", str(source), "--output", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: 12 of 16 images can't be used; --drop-broken leaves them out:")
    assert refused.stderr.rstrip().endswith("… and 2 more")
    assert not (tmp_path / "out").exists()
    found = CliRunner().invoke(main, [*arguments, "--drop-broken"])
    assert found.exit_code == 0, found.stderr
    assert found.stdout.splitlines()[0] == "train: 2 questions (published: 20,523), 12 left out"
    assert "images: 4 of 16 decoded" in found.stdout
    assert "left out: … and 2 more" in found.stdout


def test_help_says_what_is_looked_for() -> None:
    found = CliRunner().invoke(main, ["prepare", "--help"])
    for words in ("pid_splits.json", "iconqa_data.zip", "Annotations.zip", "dataset_flickr30k.json", "aren't public"):
        assert words in found.stdout
    assert CliRunner().invoke(main, ["prepare", "vqav2", "--source", "x", "--output", "y"]).exit_code == 2


def _config(name: str, prepared: Path) -> dict[str, Any]:
    datasets = yaml.safe_load((prepared / "dataset.yaml").read_text())
    pictures = {"name": "peft_image", "image_size": 64}
    datasets["datasets"][f"{name}_peft"]["vis_processor"] = {"train": pictures, "eval": pictures}
    lora = {"peft_type": "LORA", "sublayers": ["self_attention", "ffn"], "r": 2, "lora_alpha": 4}
    return {
        "model": {
            "arch": "blip2_t5_instruct_peft",
            "model_type": "tiny",
            "adapters": {"qformer": lora, "llm": "frozen"},
        },
        **datasets,
        "run": {
            "runner": "runner_peft",
            "task": TASKS[name][0],
            "max_epoch": 1,
            "init_lr": 1e-3,
            "batch_size_train": 2,
            "lr_sched": "linear_decay_lr",
            "device": "cpu",
            "num_workers": 0,
            "valid_splits": ["val"],
            "test_splits": ["test"],
            "output_dir": f"output/{name}",
            "tensorboard": False,
        },
    }


def test_train_and_evaluate(official_download: Download, tmp_path: Path) -> None:
    captions = importlib.util.find_spec("pycocoevalcap") is not None
    names = [name for name in BENCHMARKS if captions or name != "flickr30k"]
    for name in names:
        prepared = tmp_path / f"{name}_prepared"
        arguments = ["--source", str(official_download(name)), "--output", str(prepared)]
        found = CliRunner().invoke(main, ["prepare", name, *arguments])
        assert found.exit_code == 0, found.stderr
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(_config(name, prepared)))
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_EVALUATE, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.partition("ANSWERS ")[2])
    assert list(answers) == names
    for name, answer in answers.items():
        assert answer["evaluated"] == answer["trained"], name
        assert answer["trained"]["total"] == 3, name
        assert TASKS[name][1] <= set(answer["trained"]), name
    if not captions:
        pytest.skip("all but flickr30k passed; it needs pycocoevalcap")
