"""Where the plugin's data files are: in a wheel, in an editable install and in a plain checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _data_dir(name: str) -> Path:
    # A wheel carries the folder inside the package; a checkout has it beside the package. It is never imported:
    # LAVIS's wheels claim the top-level names `projects` and `tests` for themselves.
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def plugin_configs_dir() -> Path:
    """The folder of default YAMLs (`models/`, `datasets/`)."""
    return _data_dir("plugin_configs")


def projects_dir() -> Path:
    """The folder of ready-made run configs."""
    return _data_dir("projects")


def tiny_dir() -> Path:
    """The folder of the tiny InstructBLIP that the demo and the tests run on."""
    return _PACKAGE / "tiny"
