"""Building the processors that a dataset's section names, with its mistakes found. This module imports LAVIS."""

import inspect
from collections.abc import Mapping
from typing import Any

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor
from omegaconf import OmegaConf

from lavis_peft.checks import listing, suggestion, unknown_keys
from lavis_peft.errors import ConfigError

_MODES = ("train", "eval")


def build_processors(section: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """The processors of a `vis_processor` or `text_processor` section.

    Args:
        section: A mapping with `train` and `eval`, or None.
        where: Its dotted name in messages.
        problems: Every problem found is added here.

    Returns:
        The processors under `train` and `eval`; empty if the section is absent or wrong.
    """
    if not isinstance(section, Mapping):
        return {}  # a section of another type is reported where the whole of it is checked
    problems += unknown_keys(section, _MODES, where)
    built = {}
    for mode in _MODES:
        cfg = section.get(mode)
        if not isinstance(cfg, Mapping) or not isinstance(cfg.get("name"), str):
            problems.append(f"{where}.{mode}: expected a mapping with `name`, found {cfg!r}")
        else:
            built[mode] = _build(cfg, f"{where}.{mode}", problems)
    return built


def _build(cfg: Mapping[str, Any], where: str, problems: list[str]) -> BaseProcessor | None:
    name = cfg["name"]
    cls = registry.get_processor_class(name)
    if cls is None:
        known = registry.list_processors()
        problems.append(f"{where}.name: no processor {name!r}{suggestion(name, known)}; known: {listing(known)}")
        return None
    if cls.__module__.startswith("lavis."):
        # LAVIS's own processors ignore what they don't know; their options are their constructors' arguments.
        options = ["name", *list(inspect.signature(cls.__init__).parameters)[1:]]
        found = unknown_keys(cfg, options, where)
        if found:
            problems += found
            return None
    try:
        return cls.from_config(OmegaConf.create(dict(cfg)))
    except ConfigError as error:
        problems += [f"{where}: {problem}" for problem in error.problems]
    return None
