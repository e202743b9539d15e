"""What LAVIS's scripts find in place of LAVIS's own names."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import lavis_peft
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed, hooks

lavis_peft.register()

import lavis.runners  # noqa: E402  after the plugin made LAVIS importable
from lavis.common import config, dist_utils, logger  # noqa: E402
from lavis.common.registry import registry  # noqa: E402


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put LAVIS's names back after each test."""
    for owner, name in (
        (dist_utils, "init_distributed_mode"),
        (logger.SmoothedValue, "synchronize_between_processes"),
        (config, "Config"),
        (lavis.runners, "RunnerBase"),
        (lavis.runners.runner_base, "RunnerBase"),
        (sys, "excepthook"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


class Chosen:
    """A runner registered for a test; not a subclass of LAVIS's."""

    def __init__(self, cfg: Any, job_id: str = "") -> None:
        self.job_id = job_id


def config_for(runner: str | None) -> Any:
    section = {"runner": runner} if runner else {}
    return SimpleNamespace(run_cfg=section)


def test_the_scripts_get_the_plugins_start_config_and_meters() -> None:
    hooks.install()
    from lavis.common.config import Config
    from lavis.common.dist_utils import init_distributed_mode

    assert init_distributed_mode is distributed.init_distributed_mode
    assert Config.__module__ == "lavis_peft.runners.config"
    meter = logger.SmoothedValue()
    meter.update(2.0)
    meter.synchronize_between_processes()
    assert meter.global_avg == 2.0


def test_runner_base_makes_the_runner_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.mapping["runner_name_mapping"], "chosen", Chosen)
    hooks.install()
    from lavis.runners.runner_base import RunnerBase

    made = RunnerBase(cfg=config_for("chosen"), job_id="x")
    assert type(made) is Chosen
    assert made.job_id == "x"


def test_without_a_name_it_is_lavis_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.mapping["runner_name_mapping"], "runner_base", Chosen)
    hooks.install()
    assert type(lavis.runners.RunnerBase(config_for(None))) is Chosen


def test_a_runner_of_ones_own_may_inherit_from_it() -> None:
    original = lavis.runners.runner_base.RunnerBase
    hooks.install()

    class Own(lavis.runners.runner_base.RunnerBase):
        def __init__(self, cfg: Any) -> None:
            self.cfg = cfg

    own = Own(config_for("runner_peft"))
    assert isinstance(own, original)
    assert own.cfg.run_cfg == {"runner": "runner_peft"}


def test_installing_twice_changes_nothing_more() -> None:
    hooks.install()
    first = lavis.runners.runner_base.RunnerBase
    hooks.install()
    assert lavis.runners.runner_base.RunnerBase is first


def test_a_users_mistake_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        hooks.report_user_errors(ConfigError, ConfigError("run.x: wrong"), None)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "Error: run.x: wrong\n"
    hooks.report_user_errors(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err
