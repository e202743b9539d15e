"""`lavis-peft autoload`: a bare `python train.py` finds the plugin; explicit and reversible."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click

from lavis_peft.errors import UserError

_PTH = "lavis_peft_autoload.pth"
_MODULE = "lavis_peft_autoload.py"

# Python runs the .pth line at every start. All it does is put one object in a list: nothing of the plugin, or of
# torch, is imported until something imports LAVIS.
_PTH_TEXT = "import lavis_peft_autoload\n"
_MODULE_TEXT = '''"""Written by `lavis-peft autoload enable`, removed by `lavis-peft autoload disable`.

Waits for `import lavis` and then loads the plugin lavis-peft, as `python -m lavis_peft` does.
"""

import sys


class _WaitForLavis:
    def find_spec(self, name, path=None, target=None):
        if name != "lavis":
            return None
        sys.meta_path.remove(self)
        try:
            from lavis_peft.runners.hooks import find_lavis

            return find_lavis()
        except Exception as error:
            sys.stderr.write(
                "lavis-peft autoload: the plugin can't be loaded, LAVIS runs without it "
                f"({type(error).__name__}: {error}); to stop this, delete {__file__} and the .pth file beside it\\n"
            )
            return None


sys.meta_path.insert(0, _WaitForLavis())
'''


def _files(folder: Path) -> dict[Path, str]:
    # The module first: a .pth whose module isn't there yet would be an error in every Python that starts just then.
    return {folder / _MODULE: _MODULE_TEXT, folder / _PTH: _PTH_TEXT}


def site_packages() -> Path:
    """The folder whose .pth files this Python reads at its start."""
    return Path(sysconfig.get_path("purelib"))


def enable(folder: Path) -> None:
    """Write the two files.

    Args:
        folder: A site-packages folder.

    Raises:
        UserError: The folder can't be written, or this Python wouldn't find the plugin.
    """
    _require_installed()
    try:
        for path, text in _files(folder).items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: can't be written: {error.strerror or error}") from error


def disable(folder: Path) -> bool:
    """Remove the two files; returns whether there was anything to remove.

    Args:
        folder: A site-packages folder.

    Raises:
        UserError: They can't be removed.
    """
    found = [path for path in reversed(list(_files(folder))) if path.exists()]
    try:
        for path in found:
            path.unlink()
    except OSError as error:
        raise UserError(f"{folder}: can't be changed: {error.strerror or error}") from error
    return bool(found)


def is_enabled(folder: Path) -> bool:
    """Whether both files are there."""
    return all(path.is_file() for path in _files(folder))


def _require_installed() -> None:
    # Asked from another folder: in a checkout the package can be imported just because one stands in it.
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lavis_peft') is None)"
    with tempfile.TemporaryDirectory() as elsewhere:
        found = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=os.environ, check=False).returncode == 0
    if not found:
        raise UserError(
            f"lavis-peft isn't installed in {sys.prefix}: outside this folder Python doesn't find it; "
            "pip install it there first (pip install -e . in a checkout)"
        )


@click.group("autoload")
def command() -> None:
    """Make a bare `python train.py` find the plugin, or undo it."""


@command.command("enable")
def enable_command() -> None:
    """Let every program of this environment that imports LAVIS find the plugin."""
    enable(site_packages())
    click.echo(f"enabled: {site_packages() / _PTH}")


@command.command("disable")
def disable_command() -> None:
    """Undo `enable`."""
    click.echo("disabled" if disable(site_packages()) else "was not enabled")


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def status_command(as_json: bool) -> None:
    """Say whether it is enabled; exit code 1 if it isn't."""
    enabled = is_enabled(site_packages())
    answer = {"enabled": enabled, "folder": str(site_packages()), "python": sys.executable}
    click.echo(json.dumps(answer) if as_json else f"{'enabled' if enabled else 'not enabled'} in {site_packages()}")
    sys.exit(0 if enabled else 1)
