"""Whether a run goes on with what it began with: its config, its frozen weights, its number of processes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from lavis_peft.checks import suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.features.spec import CacheSpec
from lavis_peft.runners.foreign_keys import PROCESS_KEYS
from lavis_peft.runners.spec import IterRunSpec, RunSpec

#: Keys of the run section that say where and how a run happens, and not what comes of it.
NEUTRAL = frozenset(
    [
        "allow_config_change",
        "device",
        "evaluate",
        "keep_checkpoints",
        "log_freq",
        "max_bad_steps",
        "num_workers",
        # A run that ends at a bad sample may go on without it.
        "on_bad_sample",
        "on_full_disk",
        "output_dir",
        "resume_ckpt_path",
        "save_every_steps",
        "save_freq",
        "save_last",
        "tensorboard",
        "test_splits",
        *PROCESS_KEYS,
    ]
)

_ABSENT = "absent"


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs differ, of those that can change what comes of a run.

    Args:
        before: A whole config as plain containers.
        now: Another.

    Returns:
        Both values by dotted key; None stands for a key that is absent or empty.
    """
    old, new = _flat(before), _flat(now)
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def check_same(
    differing: Mapping[str, tuple[Any, Any]], allowed: Iterable[str], known: Iterable[str], source: str
) -> list[str]:
    """Stop where a run would go on with something else than it began with.

    Args:
        differing: Both values by key.
        allowed: Keys, or sections of them, that may differ.
        known: Every key that there is, for keys of `allowed` that nothing is called.
        source: What the run goes on from, for the message.

    Returns:
        A sentence for each difference that is allowed.

    Raises:
        ConfigError: Names the others, and words in `allowed` that are no key.
    """
    given, names = tuple(allowed), {prefix for key in known for prefix in _sections(key)}
    problems = [
        f"run.allow_config_change: no key is called {key!r}{suggestion(key, names)}"
        for key in given
        if key not in names
    ]
    told = {key: f"{key} was {_shown(old)} and is {_shown(new)}" for key, (old, new) in differing.items()}
    refused = [key for key in told if not set(given) & set(_sections(key))]
    problems += [f"{told[key]}; set it back, or allow it with --allow-config-change {key}" for key in refused]
    if problems:
        raise ConfigError(problems, where=source)
    return [sentence for key, sentence in told.items() if key not in refused]


def known_keys(*configs: Mapping[str, Any]) -> set[str]:
    """Every dotted key of these configs, and every key that a run section can have."""
    return {key for config in configs for key in _flat(config)} | {
        f"run.{field.name}" for kind in (RunSpec, IterRunSpec) for field in fields(kind)
    }


def _sections(key: str) -> list[str]:
    words = key.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def _shown(value: Any) -> str:
    return _ABSENT if value is None else json.dumps(value, default=str)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    run = {key: _read(key, value) for key, value in (config.get("run") or {}).items() if key not in NEUTRAL}
    defaults = {field.name: field.default for field in fields(_kind(config)) if field.name not in {*NEUTRAL, *run}}
    found = {**_leaves({**config, "run": {}}, ""), **_leaves({**defaults, **run}, "run.")}
    return {key: value for key, value in found.items() if value is not None}


def _kind(config: Mapping[str, Any]) -> type[RunSpec]:
    return IterRunSpec if (config.get("run") or {}).get("runner") == "runner_peft_iter" else RunSpec


def _read(key: str, value: Any) -> Any:
    """A run key's value as the runner reads it: 1e-5 is text to YAML 1.1, and an empty key is its default."""
    spec = {field.name: field for field in fields(IterRunSpec)}.get(key)
    if spec is None:
        return value
    try:
        found = spec.default if value is None else spec.metadata["convert"](value)
    except ValueError:
        return value
    # Where features are kept doesn't matter, and whether they are only where that rounds or draws otherwise.
    return found.effect if isinstance(found, CacheSpec) else found


def _leaves(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves
