"""Parameter-efficient tuning of InstructBLIP's Q-Former and language model, as a plugin for Salesforce LAVIS."""

from collections.abc import Callable, Sequence
from typing import Any

from lavis_peft import hook
from lavis_peft.errors import CheckpointError, ConfigError, DataError, MissingExtra, UserError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MissingExtra",
    "UserError",
    "__version__",
    "load_run",
    "register",
]

hook.install()


def register() -> None:
    """Import LAVIS, made to run on the installed libraries, with the plugin's names in its registry.

    ``import lavis_peft`` before ``import lavis`` does the same when LAVIS is imported; this function is for code that
    wants it done now. Safe to call any number of times.

    Raises:
        UserError: LAVIS isn't installed, or can't run on the installed libraries.
    """
    # Imported here: this pulls in torch and LAVIS, and `lavis-peft --help` must not wait for them.
    from lavis_peft.registration import register as register_now

    register_now()


def load_run(cfg_path: str, checkpoint: str | None = None, options: Sequence[str] = ()) -> tuple[Any, Callable]:
    """A tuned model and its image processor; see :func:`lavis_peft.models.load.load_run`."""
    register()
    from lavis_peft.models.load import load_run as load

    return load(cfg_path, checkpoint, options)
