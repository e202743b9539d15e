"""What must be in place before one of LAVIS's scripts imports its names."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from lavis_peft.errors import UserError
from lavis_peft.runners import peers


def install() -> None:
    """Replace what LAVIS's scripts take for granted; ``lavis`` must be importable. Idempotent.

    - ``init_distributed_mode`` and the meters' synchronisation: also without a GPU (LAVIS hard-codes nccl and cuda).
    - ``Config``: checks everything first, and every override takes effect.
    - ``RunnerBase``: ``evaluate.py`` names it outright; the runner that the config asks for is made instead.
    - ``sys.excepthook``: a user's mistake ends in its message and exit code 2, without a traceback.
    """
    import lavis.runners
    from lavis.common import config, dist_utils, logger
    from lavis.common.registry import registry

    from lavis_peft.runners import distributed
    from lavis_peft.runners.config import RunConfig

    dist_utils.init_distributed_mode = distributed.init_distributed_mode
    logger.SmoothedValue.synchronize_between_processes = distributed.synchronize_meter
    config.Config = RunConfig
    if not getattr(lavis.runners.runner_base.RunnerBase, "_chooses", False):
        chooser = _choosing(lavis.runners.runner_base.RunnerBase, registry)
        lavis.runners.runner_base.RunnerBase = lavis.runners.RunnerBase = chooser
    sys.excepthook = report_user_errors


def find_lavis() -> ModuleSpec | None:
    """Where LAVIS is, with :func:`install` to run as soon as it is loaded; for a program that was started bare."""
    import lavis_peft  # noqa: F401  puts the hook in place that makes LAVIS run and registers the names

    spec = importlib.util.find_spec("lavis")
    if spec is None or spec.loader is None:
        return spec
    execute = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        install()

    # On the instance: the loader stays what it is for inspect, pkgutil and runpy.
    setattr(spec.loader, "exec_module", exec_module)
    return spec


def _choosing(base: type, registry: Any) -> type:
    """A class that makes the runner named by ``run.runner``; as a base class of a user's own runner it is `base`."""

    class RunnerBase(base):
        _chooses = True

        def __new__(cls, cfg: Any, *args: Any, **kwargs: Any) -> Any:
            if cls is not RunnerBase:
                return super().__new__(cls)
            chosen = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
            # Python runs __init__ only on instances of this class, and these aren't.
            return chosen(cfg, *args, **kwargs)

    return RunnerBase


def report_user_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook: a :class:`UserError` as one message, anything else as Python shows it.

    In a run of several processes it ends them all.

    Args:
        kind: The exception's class.
        error: The exception.
        trace: Its traceback.

    Raises:
        SystemExit: With the error's code; Python lets an excepthook set the exit code this way.
    """
    if not isinstance(error, UserError):
        peers.end_with(error, 1, lambda: sys.__excepthook__(kind, error, trace))
        return
    peers.end_with(error, error.exit_code, lambda: sys.stderr.write(f"{error.heading}: {error}\n"))
    raise SystemExit(error.exit_code)
