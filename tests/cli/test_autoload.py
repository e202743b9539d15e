"""`lavis-peft autoload`, proven in a virtual environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import lavis_peft
from lavis_peft.cli.autoload import disable, enable, is_enabled
from lavis_peft.errors import UserError

SCRIPT = """
from lavis.common.registry import registry
from lavis.common.config import Config
from lavis.runners.runner_base import RunnerBase
print(sorted(registry.list_runners()), Config.__module__, RunnerBase._chooses)
"""
BAD = """
from argparse import Namespace
from lavis.common.config import Config
Config(Namespace(cfg_path="no.yaml", options=[]))
"""


class Environment:
    """A virtual environment that finds this one's libraries, and the plugin apart from them, through .pth files."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.site = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        # By links, for the plugin may be installed among the libraries, and some tests take it away.
        plugin = Path(lavis_peft.__file__).parent
        installed = Path(sysconfig.get_path("purelib")).iterdir()
        self._path("libraries", [path for path in installed if not path.name.startswith(plugin.name)])
        self.plugin = self._path("plugin", [plugin])

    def _path(self, name: str, targets: list[Path]) -> Path:
        (self.folder / name).mkdir()
        for target in targets:
            (self.folder / name / target.name).symlink_to(target)
        entry = self.site / f"{name}.pth"
        entry.write_text(f"{self.folder / name}\n")
        return entry

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def autoload(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from lavis_peft.cli import main; main()", "autoload", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("venv"))


def test_enable_use_and_disable(environment: Environment) -> None:
    status = environment.autoload("status", "--json")
    assert (status.returncode, json.loads(status.stdout)["enabled"]) == (1, False)
    enabled = environment.autoload("enable")
    assert enabled.returncode == 0, enabled.stderr
    assert environment.autoload("status").returncode == 0

    # A bare script finds the plugin and everything that the launcher puts in place …
    found = environment.run("-c", SCRIPT)
    assert found.returncode == 0, found.stderr
    assert "'runner_peft'" in found.stdout
    assert found.stdout.endswith("lavis_peft.runners.config True\n")
    # … and its mistakes end as the launcher's do.
    bad = environment.run("-c", BAD)
    assert (bad.returncode, "Traceback" in bad.stderr) == (2, False)
    assert "Error: no.yaml: no such file" in bad.stderr

    # Nothing is imported where nobody imports LAVIS.
    idle = environment.run("-c", "import sys; print([name for name in sys.modules if name.startswith('lavis')])")
    assert idle.stdout == "['lavis_peft_autoload']\n"

    assert environment.autoload("disable").stdout == "disabled\n"
    assert environment.autoload("disable").stdout == "was not enabled\n"
    assert not list(environment.site.glob("lavis_peft_autoload*.p*"))


def test_a_plugin_that_is_gone_breaks_nothing(environment: Environment) -> None:
    environment.autoload("enable")
    path = environment.plugin.read_text()
    environment.plugin.unlink()
    try:
        idle = environment.run("-c", "print(1)")
        assert (idle.returncode, idle.stdout, idle.stderr) == (0, "1\n", "")
        lavis = environment.run("-c", "import importlib.util; print(importlib.util.find_spec('lavis') is not None)")
        assert lavis.stdout == "True\n"
        assert "the plugin can't be loaded, LAVIS runs without it (ModuleNotFoundError" in lavis.stderr
    finally:
        environment.plugin.write_text(path)
        environment.autoload("disable")


def test_start_up_costs_next_to_nothing(environment: Environment) -> None:
    # Modules, not seconds: a busy machine takes ten times as long for the same.
    code = "before = set(sys.modules); import lavis_peft_autoload; print(*sorted(set(sys.modules) - before))"
    enable(environment.site)
    try:
        start = f"import sys; sys.path.append({str(environment.site)!r}); {code}"
        imported = environment.run("-S", "-c", start).stdout.split()
    finally:
        disable(environment.site)
    assert "lavis_peft_autoload" in imported
    assert {name.partition(".")[0] for name in imported}.isdisjoint(["torch", "lavis", "transformers", "omegaconf"])
    assert len(imported) < 25


def test_a_package_that_is_only_in_the_current_folder_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(Environment(tmp_path / "venv").python))
    (tmp_path / "venv" / next(iter((tmp_path / "venv").glob("lib/*/site-packages/plugin.pth")))).unlink()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UserError, match="isn't installed in"):
        enable(tmp_path)
    assert not is_enabled(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written"):
        enable(tmp_path / "none")
