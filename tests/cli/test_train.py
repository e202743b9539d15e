"""`lavis-peft train` and `evaluate`: the command line of LAVIS's scripts without a LAVIS checkout."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import lavis_peft
from lavis_peft.cli import main
from lavis_peft.cli.run_options import RunCommand, run_options

RunFile = Callable[..., Path]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(lavis_peft.__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "from lavis_peft.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--options", "a.b=1", "c.d=2"], ["a.b=1", "c.d=2"]),
        (["--options", "a.b=1", "--options", "c.d=2", "e.f=3"], ["a.b=1", "c.d=2", "e.f=3"]),
        (["--options=a.b=1"], ["a.b=1"]),
        (["--options", "run.min_lr", "-1", "a.b", "-.5"], ["run.min_lr", "-1", "a.b", "-.5"]),
        ([], []),
    ],
)
def test_options_take_any_number_of_values(arguments: list[str], options: list[str]) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []

    @click.command("x", cls=RunCommand)
    @run_options
    def command(cfg_path: str, options: tuple[str, ...]) -> None:
        seen.append((cfg_path, options))

    for line in (["--cfg-path", "r.yaml", *arguments], [*arguments, "--cfg-path", "r.yaml"]):
        assert CliRunner().invoke(command, line).exit_code == 0
    assert seen == [("r.yaml", tuple(options))] * 2


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("a: [", "isn't YAML"),
        ("datasets: {d: {a: 1}}\nrun: {a: 1}\n", "model: missing section"),
    ],
)
def test_a_config_that_cannot_be_read(command: str, text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    found = CliRunner().invoke(main, [command, "--cfg-path", str(path)])
    assert found.exit_code == 2
    assert message in found.stderr
    assert str(path) in found.stderr


def test_malformed_options(run_file: RunFile) -> None:
    found = CliRunner().invoke(main, ["train", "--cfg-path", str(run_file()), "--options", "run.seed"])
    assert (found.exit_code, "must be KEY=VALUE" in found.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--resume", "--cfg-path", "r.yaml"], ['run.resume_ckpt_path="auto"']),
        (["--cfg-path", "r.yaml", "--resume"], ['run.resume_ckpt_path="auto"']),
        (
            ["--cfg-path", "r.yaml", "--options", "a.b=1", "--resume", "x y.pth"],
            ["a.b=1", 'run.resume_ckpt_path="x y.pth"'],
        ),
        (
            ["--cfg-path", "r.yaml", "--allow-config-change", "run.seed", "--allow-config-change", "model"],
            ['run.allow_config_change=["run.seed", "model"]'],
        ),
    ],
)
def test_going_on(arguments: list[str], options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis_peft.cli import running

    seen: list[list[str]] = []
    monkeypatch.setattr(running, "run", lambda cfg_path, given, training: seen.append(given) or {})
    assert CliRunner().invoke(main, ["train", *arguments]).exit_code == 0
    assert seen == [options]


def test_train_then_evaluate(run_file: RunFile, tmp_path: Path) -> None:
    path = str(run_file(output_dir="here", evaluate=None, seed=None))
    trained = run("train", "--cfg-path", path, "--options", "run.max_epoch=1", "run.lr_sched=constant_lr", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "here").iterdir()
    assert trained.stdout.startswith(f"output_dir: {folder}\ntest.agg_metrics: ")
    expected = json.loads((folder / "result" / "metrics_test.json").read_text())
    option = f"run.resume_ckpt_path={folder / 'checkpoint_best.pth'}"
    evaluated = run("evaluate", "--cfg-path", path, "--options", option, "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    answer = json.loads(evaluated.stdout)
    assert answer["test"] == expected
    assert (Path(answer["output_dir"]) / "result" / "test_evaluation.json").is_file()


def test_names_are_checked_before_anything_is_loaded(run_file: RunFile, tmp_path: Path) -> None:
    path = run_file(model={"t5_model": "/nowhere"})
    options = ["model.arch=blip2_t5_instruct_peft", "run.task=vqaa", "datasets.instruct_json.type=x", "run.runner=r"]
    found = run("train", "--cfg-path", str(path), "--options", *options, cwd=tmp_path)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    for part in ("run.task: unknown name 'vqaa'", "datasets.instruct_json.type", "run.runner: unknown name 'r'"):
        assert part in found.stderr


@pytest.mark.parametrize(
    ("run_keys", "options", "message"),
    [
        ({"test_splits": None}, [], "run.test_splits: names no split"),
        ({}, ["model.load_pretrained=true", "model.pretrained=''"], "the model would have random weights"),
    ],
)
def test_evaluating_nothing_or_nobodys_weights(
    run_keys: dict[str, object], options: list[str], message: str, run_file: RunFile, tmp_path: Path
) -> None:
    arguments = ["--options", *options] if options else []
    found = run("evaluate", "--cfg-path", str(run_file(**run_keys)), *arguments, cwd=tmp_path)
    assert (found.returncode, "Traceback" in found.stderr) == (2, False)
    assert message in found.stderr
