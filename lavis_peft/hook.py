"""An import hook that adds the plugin to LAVIS at the moment LAVIS is imported.

It costs a few microseconds until then, so `import lavis_peft` (and an autoload file in site-packages) stays cheap, and
a program that never imports LAVIS never pays for torch.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _RegisteringLoader(Loader):
    """Runs LAVIS's own loader, then registers the plugin's names."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from lavis_peft import compat
        from lavis_peft.registration import register_names

        compat.apply()
        self._loader.exec_module(module)
        register_names()


class LavisHook(MetaPathFinder):
    """Waits for `import lavis`; every other import passes by untouched."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "lavis":
            return None
        # Every other finder is asked, not only Python's own: an editable install of LAVIS has a finder to itself.
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Put the hook first in line; does nothing if it is there or if LAVIS is loaded already."""
    if "lavis" not in sys.modules and not any(isinstance(finder, LavisHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, LavisHook())
