"""Checks shared by the processors' sections of a run config."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.checks import unknown_keys
from lavis_peft.errors import ConfigError


def processor_options(cfg: Mapping[str, Any] | None, defaults: Mapping[str, int]) -> dict[str, int]:
    """The whole-number options of a processor's section, each at least 1.

    Args:
        cfg: The section, its ``name`` included; None for the defaults.
        defaults: Every option with its default.

    Raises:
        ConfigError: With every unknown key and wrong value.
    """
    section = dict(cfg) if cfg is not None else {}
    where = str(section.pop("name", "processor"))
    problems = unknown_keys(section, defaults, where)
    for key, value in section.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key in defaults and not (whole and value >= 1):
            problems.append(f"{where}.{key}: expected a whole number of at least 1, found {value!r}")
    if problems:
        raise ConfigError(problems)
    return {key: section.get(key, default) for key, default in defaults.items()}
