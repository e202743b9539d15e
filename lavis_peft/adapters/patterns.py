"""Settings of single layers: `rank_pattern`, `alpha_pattern` and the like."""

import re
from collections.abc import Sequence
from typing import Any

from lavis_peft.adapters.methods import PATTERNS
from lavis_peft.adapters.spec import AdapterSpec
from lavis_peft.errors import ConfigError


def exact_patterns(spec: AdapterSpec, names: Sequence[str], part: str) -> dict[str, Any]:
    """`rank_pattern`, `alpha_pattern` and the like with their expressions written out for each target.

    peft's versions match these keys differently (0.13 wants something before the ending, and uses one key for several
    patterns); exact names mean the same in all of them. A key that matches no target is a mistake that old versions
    don't mention.

    Args:
        spec: The adapter.
        names: The layers it adapts.
        part: The part's full key, for messages.

    Raises:
        ConfigError: A key matches none of the layers.
    """
    exact: dict[str, Any] = {}
    for option in PATTERNS:
        given = spec.options.get(option) or {}
        keys = {name: next((key for key in given if _ends(key, name)), None) for name in names}
        if unused := [key for key in given if not any(_ends(key, name) for name in names)]:
            raise ConfigError([f"{part}.{option}: '{key}' matches none of the adapted layers" for key in unused])
        if given:
            exact[option] = {name: given[key] for name, key in keys.items() if key is not None}
    return exact


def _ends(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None
