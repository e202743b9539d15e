"""Runs around the import of LAVIS's modules: stand-ins while one executes, patches to it right after."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from lavis_peft.compat import standins


class _LavisFinder(MetaPathFinder):
    """Finds LAVIS's modules as Python does and gives their loaders the extra steps.

    Args:
        loaded: Called with a module's name once the module has been executed.
    """

    def __init__(self, loaded: Callable[[str], None]) -> None:
        self._loaded = loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("lavis."):
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with standins.for_lavis():
                    execute(module)
                self._loaded(fullname)

            # On the instance: the loader stays what it is for inspect, pkgutil and runpy.
            setattr(spec.loader, "exec_module", exec_module)
        return spec


def install(loaded: Callable[[str], None]) -> None:
    """Put the finder before Python's own, once."""
    if not any(isinstance(finder, _LavisFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LavisFinder(loaded))
