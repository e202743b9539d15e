"""Models on the Hugging Face hub."""

from pathlib import Path

from lavis_peft.checks import first_line
from lavis_peft.errors import ConfigError

_KINDS = ["*.json", "*.model", "*.txt"]


def snapshot(name: str, key: str) -> Path:
    """The folder of a model on the hub, downloaded if it isn't on this machine.

    Args:
        name: As ``google/flan-t5-xl``.
        key: What the user gave it as, for messages.

    Raises:
        ConfigError: It can't be had.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_KINDS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_KINDS, "*.bin"]))
    except (OSError, ValueError) as error:  # what the hub's library raises are kinds of these two
        reason = f"is no folder here, and can't be had from the hub: {first_line(error)}"
        raise ConfigError(f"{key}: {name!r} {reason}") from error
    return folder
