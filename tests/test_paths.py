"""The plugin's data is found in a checkout, in an editable install and in a wheel."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lavis_peft
from lavis_peft import paths

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(lavis_peft.__file__).resolve().parent


def names(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {file.as_posix() for file in files if "__pycache__" not in file.parts and file.parts[0] != "output"}


@pytest.mark.parametrize(
    ("found", "source"), [(paths.plugin_configs_dir(), "plugin_configs"), (paths.projects_dir(), "projects")]
)
def test_the_installed_data_is_the_checkouts(found: Path, source: str) -> None:
    assert names(found) == names(ROOT / source)
    assert "defaults.yaml" in {Path(name).name for name in names(paths.plugin_configs_dir())}


def test_the_tiny_model_is_in_the_package() -> None:
    assert paths.tiny_dir() == PACKAGE / "tiny"


def test_every_package_is_declared() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {path.parent for path in (ROOT / "lavis_peft").rglob("__init__.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    declared = set(setup["options"]["packages"].split())
    assert declared == packages | {"lavis_peft.plugin_configs", "lavis_peft.projects"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="70.1")
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    # From links, so that building leaves nothing in the checkout.
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "lavis_peft", "plugin_configs", "projects"):
        if (ROOT / name).exists():
            (source / name).symlink_to(ROOT / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        work,
        source,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(work.glob("*.whl"))


def test_the_wheel_holds_code_and_data(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"lavis_peft/{name}" for name in names(ROOT / "lavis_peft")}
    expected |= {f"lavis_peft/{part}/{name}" for part in ("plugin_configs", "projects") for name in names(ROOT / part)}
    assert {name for name in inside if ".dist-info/" not in name} == expected


def test_an_unpacked_wheel_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "from lavis_peft import paths\n"
        "print(*(folder for folder in (paths.plugin_configs_dir(), paths.projects_dir(), paths.tiny_dir())), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    expected = [tmp_path / "lavis_peft" / name for name in ("plugin_configs", "projects", "tiny")]
    assert shown.stdout.splitlines() == [str(folder) for folder in expected]
    assert all(folder.is_dir() for folder in expected)
