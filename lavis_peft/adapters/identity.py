"""Which model a checkpoint belongs to: the plugin's own entry in it, and how two of them differ."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.adapters.methods import METHODS, option_defaults
from lavis_peft.adapters.spec import AdaptersSpec

# The entry's name; LAVIS's own readers pass it by.
HEADER = "lavis_peft"
# Options that only training reads: weights trained with one value are right for a model with another.
_TRAINING_ONLY = (
    "_dropout",
    *(f".{key}" for key in ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight")),
    ".budget_unit",
)


def header(version: str, arch: str, model_type: str, adapters: AdaptersSpec) -> dict[str, Any]:
    """The plugin's own entry of a checkpoint, under `HEADER`: plain containers that say which model it belongs to."""
    return {"version": version, "arch": arch, "model_type": model_type, "adapters": adapters.as_dict()}


def differences(checkpoint: Mapping[str, Any], arch: str, model_type: str, adapters: AdaptersSpec) -> list[str]:
    """How the model a checkpoint was saved from differs from this one.

    Args:
        checkpoint: What `checkpoint.read_checkpoint` returned.
        arch: This model's name in the registry.
        model_type: This model's variant.
        adapters: This model's adapters.

    Returns:
        One line, with both values, for each key that differs and changes what the weights mean; none for files
        without the plugin's entry. A key that only one side sets is compared with peft's default.
    """
    entry = checkpoint.get(HEADER)
    if entry is None:
        return []
    if not isinstance(entry, Mapping):
        return [f"{HEADER}: {entry!r:.60} in the checkpoint, where a mapping should say which model it is of"]
    theirs = _flat({key: _completed(entry.get(key)) for key in ("arch", "model_type", "adapters")}, "")
    ours = _flat({"arch": arch, "model_type": model_type, "adapters": _completed(adapters.as_dict())}, "")
    return [
        f"{key}: {theirs.get(key, 'not set')} in the checkpoint, {ours.get(key, 'not set')} in this model"
        for key in sorted(theirs | ours)
        if not _same(theirs.get(key), ours.get(key)) and not key.endswith(_TRAINING_ONLY)
    ]


def _same(first: object, second: object) -> bool:
    # Of one kind or two numbers: comparing a tensor, in a file that somebody made, gives no yes or no.
    numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
    return (numbers or type(first) is type(second)) and bool(first == second)


def _completed(section: object) -> object:
    """The section with peft's defaults for what it leaves unsaid."""
    if not isinstance(section, Mapping):
        return section
    peft_type = str(section.get("peft_type"))
    defaults = option_defaults(peft_type) if peft_type in METHODS else {}
    return {**defaults, **{key: _completed(value) for key, value in section.items()}}


def _flat(value: object, key: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else str(name)).items()}
