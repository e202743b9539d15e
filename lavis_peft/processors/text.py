"""Text processors."""

import re
from collections.abc import Mapping
from typing import Any

from lavis.processors.base_processor import BaseProcessor

from lavis_peft.processors.options import processor_options

_DROPPED = re.compile(r"[!*#;]")


class InstructBlipQuestionProcessor(BaseProcessor):
    """`instruct_blip_question`: drops ``! * # ;``, strips, keeps the first words; case stays as it is.

    Args:
        max_words: Longest text, in words between single spaces.
    """

    def __init__(self, max_words: int = 1000) -> None:
        # LAVIS's own __init__ is left out: it sets a lambda, which spawned data workers can't pickle.
        self.max_words = max_words

    def __call__(self, item: str) -> str:
        """The processed text."""
        # Split at single spaces only, so that line breaks between options survive.
        words = _DROPPED.sub("", item).strip().split(" ")
        return " ".join(words[: self.max_words])

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any] | None = None) -> "InstructBlipQuestionProcessor":
        """Build from a YAML section.

        Raises:
            ConfigError: An unknown key or a wrong value.
        """
        return cls(**processor_options(cfg, {"max_words": 1000}))
