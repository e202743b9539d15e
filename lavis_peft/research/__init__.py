"""Run configs and checkpoints of the research code of Kim et al. 2024 (github.com/AttentionX/InstructBLIP_PEFT).

A config is translated where it is read, so that everything behind knows one form only. Nothing in here knows LAVIS.
"""

import logging
from functools import cache

from omegaconf import DictConfig, OmegaConf

from lavis_peft.research.model import ARCHS
from lavis_peft.research.translate import translate

__all__ = ["ARCHS", "adopted", "is_research"]

_log = logging.getLogger(__name__)


def is_research(config: DictConfig) -> bool:
    """Whether a run config names one of the research code's models."""
    return str(config.model.get("arch")) in ARCHS


def adopted(config: DictConfig, where: str) -> DictConfig:
    """A run config in the plugin's form: translated if it is the research code's, else as it is.

    Args:
        config: The file's content, overrides merged in.
        where: The file's name, for messages.

    Raises:
        ConfigError: With every key that can't be honoured.
    """
    if not is_research(config):
        return config
    translation = translate(OmegaConf.to_container(config, resolve=True), where)
    _announce(where, translation.dropped)
    return OmegaConf.create(translation.config)


@cache  # a command reads its config several times
def _announce(where: str, dropped: tuple[str, ...]) -> None:
    left_out = f" Without effect there, left out here: {'; '.join(dropped)}." if dropped else ""
    _log.warning("%s is a run config of the research code, translated (see `lavis-peft convert`).%s", where, left_out)
