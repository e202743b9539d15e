"""The command group: quick, lazy, and one way to fail."""

import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner

import lavis_peft
from lavis_peft.cli import COMMANDS, main
from lavis_peft.errors import ConfigError


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a command called `train` in place that runs a function."""

    def install(run: Callable[[], Any]) -> None:
        module: Any = types.ModuleType("fake_command")
        module.command = click.Command("train", callback=run)
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(COMMANDS, "train", ("fake_command", "Fake."))

    return install


def fail(error: BaseException) -> Callable[[], Any]:
    def run() -> None:
        raise error

    return run


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lavis_peft.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'lavis', 'transformers', 'peft', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print('lavis_peft.cli.train' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for name, (_, line) in COMMANDS.items():
        assert name in found.stdout
        assert line.split(",")[0][:40] in found.stdout
    assert found.stdout.rstrip().endswith("False")


def test_version() -> None:
    assert lavis_peft.__version__ in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize("name", ["autoload", "evaluate", "train"])
def test_a_command_is_called_what_its_module_says(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command
    assert command.name == name
    assert command.get_short_help_str(200).rstrip(".") in COMMANDS[name][1]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("run.x: wrong"), 2, "Error: run.x: wrong\n"),
        (ConfigError(["a", "b"], where="run.yaml"), 2, "Error: run.yaml: 2 problems:\n  - a\n  - b\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (click.UsageError("no"), 2, "no"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    error: BaseException, code: int, message: str, fake: Callable[..., None]
) -> None:
    fake(fail(error))
    found = CliRunner().invoke(main, ["train"])
    assert found.exit_code == code
    assert message in found.stderr
    assert found.stdout == ""


def test_a_bug_stays_a_traceback(fake: Callable[..., None]) -> None:
    fake(fail(ZeroDivisionError()))
    assert isinstance(CliRunner().invoke(main, ["train"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("answer", "code"), [(lambda: sys.exit(1), 1), (lambda: click.get_current_context().exit(1), 1)]
)
def test_a_command_may_answer_no(answer: Callable[[], Any], code: int, fake: Callable[..., None]) -> None:
    fake(answer)
    assert CliRunner().invoke(main, ["train"]).exit_code == code


def test_a_success_is_zero_whatever_is_returned(fake: Callable[..., None]) -> None:
    fake(lambda: {"a": 1})
    assert CliRunner().invoke(main, ["train"]).exit_code == 0


def test_an_unknown_command() -> None:
    found = CliRunner().invoke(main, ["trian"])
    assert found.exit_code == 2
    assert "No such command 'trian' (did you mean 'train'?)" in found.stderr
