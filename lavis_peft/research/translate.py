"""A run config of the research code in the plugin's form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavis_peft.errors import ConfigError
from lavis_peft.research.data import translate_datasets
from lavis_peft.research.findings import Findings
from lavis_peft.research.model import translate_model
from lavis_peft.research.run import translate_run


@dataclass(frozen=True)
class Translation:
    """A translated run config.

    Args:
        config: The sections `model`, `datasets` and `run`.
        notes: What stands elsewhere now, or was a default of the research code's.
        dropped: Keys that had no effect there, each with the reason.
    """

    config: dict[str, Any]
    notes: tuple[str, ...]
    dropped: tuple[str, ...]


def translate(config: Mapping[str, Any], where: str = "") -> Translation:
    """Translate a run config whose `model.arch` is one of the research code's.

    Args:
        config: Its sections as plain containers.
        where: The file's name, for messages.

    Raises:
        ConfigError: With every key that can't be honoured, as it stands in the file.
    """
    found = Findings()
    sections = {
        "model": translate_model(config["model"], found),
        "datasets": translate_datasets(config["datasets"], found),
        "run": translate_run(config["run"], found),
    }
    if found.problems:
        raise ConfigError(found.problems, where=where)
    return Translation(sections, tuple(found.notes), tuple(found.dropped))
