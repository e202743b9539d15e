"""The hook that waits for `import lavis`; LAVIS itself isn't imported here."""

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

import pytest

from lavis_peft.hook import LavisHook


class OnlyFinder:
    """Knows where `lavis` is when Python's own finder doesn't, as the finder of an editable install."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec:
        return ModuleSpec(fullname, SourceFileLoader(fullname, "/clone/lavis/__init__.py"), origin="editable")


def test_an_editable_install_of_lavis_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = LavisHook()
    monkeypatch.setattr(sys, "meta_path", [hook, OnlyFinder()])
    spec = hook.find_spec("lavis", None)
    assert spec is not None
    assert spec.origin == "editable"
    assert not isinstance(spec.loader, SourceFileLoader)


def test_other_imports_pass_by() -> None:
    assert LavisHook().find_spec("lavis.models", None) is None
    assert LavisHook().find_spec("torch", None) is None


def test_lavis_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = LavisHook()
    monkeypatch.setattr(sys, "meta_path", [hook])
    assert hook.find_spec("lavis", None) is None
