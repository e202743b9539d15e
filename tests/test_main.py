"""``python -m lavis_peft SCRIPT``, alone and under torchrun, with scripts that use LAVIS as its own do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lavis_peft

RunFile = Callable[..., Path]

# The calls of LAVIS's scripts, which aren't in its wheel: names imported at the top, a Config from the command line,
# the process group, task, datasets, model, runner.
SCRIPT = """
import argparse

import torch

import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.models import *
from lavis.runners import *
from lavis.runners.runner_base import RunnerBase

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-path", required=True)
    parser.add_argument("--options", nargs="+")
    job_id = now()
    cfg = Config(parser.parse_args())
    init_distributed_mode(cfg.run_cfg)
    torch.manual_seed(cfg.run_cfg.seed + get_rank())
    setup_logger()
    cfg.pretty_print()
    task = tasks.setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    runner_cls = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
    parts = dict(cfg=cfg, job_id=job_id, task=task, model=model, datasets=datasets)
    ACTION
"""
TRAIN = SCRIPT.replace("ACTION", "runner_cls(**parts).train()")
EVALUATE = SCRIPT.replace("ACTION", "RunnerBase(**parts).evaluate(skip_reload=True)")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python from another folder, with the package under test."""
    root = str(Path(lavis_peft.__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=480, check=False
    )


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "lavis_peft", *arguments, cwd=cwd)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


def runs_in(output: Path) -> list[Path]:
    return sorted(output.iterdir())


def log_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.txt").read_text().splitlines()]


def test_help(tmp_path: Path) -> None:
    found = launch("--help", cwd=tmp_path)
    assert (found.returncode, "SCRIPT" in found.stdout) == (0, True)
    assert launch(cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(("script", "message"), [("none.py", "no such script"), (".", "is a directory")])
def test_a_script_that_is_not_there(script: str, message: str, tmp_path: Path) -> None:
    found = launch(script, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (2, f"Error: {script}: {message}\n")


@pytest.mark.parametrize("flag", [["--cfg-path", "none.yaml"], ["--cfg-path=none.yaml"]])
def test_a_missing_config_is_said_before_anything_runs(flag: list[str], tmp_path: Path) -> None:
    found = launch(write(tmp_path, "s.py", "open('ran', 'w')"), *flag, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (2, "Error: none.yaml: no such file\n")
    assert not (tmp_path / "ran").exists()


def test_a_script_runs_as_python_would_run_it_with_the_plugin_loaded(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    write(tmp_path / "scripts", "beside.py", "VALUE = 7")
    text = (
        "import json, os, sys, beside\n"
        "from lavis.common.registry import registry\n"
        "folder = os.path.basename(sys.path[0])\n"
        "print(json.dumps([__name__, sys.argv, folder, beside.VALUE, registry.list_runners()]))\n"
        "sys.exit(5)\n"
    )
    write(tmp_path / "scripts", "s.py", text)
    found = launch("scripts/s.py", "--flag", "x", cwd=tmp_path)
    name, argv, folder, value, runners = json.loads(found.stdout.splitlines()[-1])
    assert (name, argv, folder, value) == ("__main__", ["scripts/s.py", "--flag", "x"], "scripts", 7)
    assert "runner_peft" in runners
    assert found.returncode == 5


def test_bad_input_of_a_training_script(run_file: RunFile, tmp_path: Path) -> None:
    script = write(tmp_path, "t.py", TRAIN)
    options = ["run.max_epohc=3", "model.arch=blip3", "run.lr_sched=none"]
    found = launch(script, "--cfg-path", str(run_file()), "--options", *options, cwd=tmp_path)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert "3 problems" in found.stderr
    assert "did you mean 'max_epoch'?" in found.stderr


def test_training_and_evaluation_scripts(run_file: RunFile, tmp_path: Path) -> None:
    path = run_file(max_epoch=1, output_dir="here")
    train = launch(write(tmp_path, "t.py", TRAIN), "--cfg-path", str(path), cwd=tmp_path)
    assert train.returncode == 0, train.stderr
    (run,) = runs_in(tmp_path / "here")
    trained = log_of(run)[-1]
    assert trained["test_total"] == 5
    checkpoint = str(run / "checkpoint_best.pth")
    for option in (
        ["model.load_finetuned=true", f"model.finetuned={checkpoint}"],
        [f"run.resume_ckpt_path={checkpoint}"],
    ):
        evaluate = launch(
            write(tmp_path, "e.py", EVALUATE), "--cfg-path", str(path), "--options", *option, cwd=tmp_path
        )
        assert evaluate.returncode == 0, evaluate.stderr
        scored = log_of(runs_in(tmp_path / "here")[-1])[-1]
        assert scored["test_agg_metrics"] == trained["test_agg_metrics"]


def test_a_run_config_of_the_research_code(research_run: RunFile, tmp_path: Path) -> None:
    """As it is, `distributed` and all, through LAVIS's training script."""
    path = research_run("blip2_t5_instruct_qformer_lora")
    found = launch(write(tmp_path, "t.py", TRAIN), "--cfg-path", str(path), "--options", "model.lora_r=2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "old.yaml is a run config of the research code, translated" in found.stderr
    (run,) = runs_in(tmp_path / "output")
    log = log_of(run)
    assert log[0]["config"]["model"]["adapters"]["qformer"]["r"] == 2
    assert log[-1]["test_total"] == 4


def test_two_processes_under_torchrun(run_file: RunFile, tmp_path: Path) -> None:
    # 13 questions for 2 processes: the shares are of different length.
    path = run_file(
        max_epoch=2, output_dir="here", batch_size_train=2, sizes={"test": 13}, distributed=True, world_size=2
    )
    script = write(tmp_path, "t.py", TRAIN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = python(*torchrun, "-m", "lavis_peft", script, "--cfg-path", str(path), cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    (run,) = runs_in(tmp_path / "here")
    log = log_of(run)
    assert [line["epoch"] for line in log[1:]] == [0, 0, 1, 1, "best"]
    assert log[-1]["test_total"] == 13
    assert "Saved epoch 1" in found.stderr
    option = f"run.resume_ckpt_path={run / 'checkpoint_best.pth'}"
    alone = launch(write(tmp_path, "e.py", EVALUATE), "--cfg-path", str(path), "--options", option, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    predictions = [
        sorted(json.loads(file.read_text()), key=lambda row: row["question_id"])
        for file in (
            run / "result" / "test_best.json",
            runs_in(tmp_path / "here")[-1] / "result" / "test_evaluation.json",
        )
    ]
    assert [row["prediction"] for row in predictions[0]] == [row["prediction"] for row in predictions[1]]
