"""Run import statements as LAVIS's modules would, without LAVIS."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.compat import standins
from lavis_peft.errors import MissingExtra


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every optional module, installed or not, and forget what was served."""
    monkeypatch.setattr(standins, "_served", {})
    for name in [name for name in sys.modules if name.partition(".")[0] in standins.OPTIONAL]:
        monkeypatch.delitem(sys.modules, name)

    class Hide:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] in standins.OPTIONAL:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hide, *sys.meta_path])


def run(code: str, module: str = "lavis.made_up") -> dict[str, Any]:
    names = {"__name__": module}
    exec(code, names)
    return names


def run_while_importing(code: str) -> dict[str, Any]:
    with standins.for_lavis():
        return run(code)


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(
    "code",
    [
        "import decord",
        "import decord; decord.bridge.set_bridge('torch')",
        "from decord import VideoReader, cpu",
        "import torchaudio.compliance.kaldi as kaldi",
        "import torchaudio.transforms",
        "from fairscale.nn.checkpoint.checkpoint_activations import checkpoint_wrapper",
        "import diffusers\nclass Model(diffusers.UNet2DConditionModel): pass",
        "from typing import Optional\nfrom easydict import EasyDict\ndef f(x: Optional[EasyDict] = None): pass",
        "from einops import rearrange\n@rearrange\ndef f(): pass",
    ],
)
def test_what_lavis_does_at_its_top_passes(code: str) -> None:
    run_while_importing(code)


@pytest.mark.usefixtures("absent")
def test_use_names_the_module_and_its_extra() -> None:
    names = run_while_importing("from decord import VideoReader")
    with pytest.raises(MissingExtra, match=r'decord\.VideoReader.*not installed.*"lavis-peft\[video\]"'):
        names["VideoReader"]("film.mp4")


@pytest.mark.usefixtures("absent")
def test_a_class_built_on_a_stand_in_fails_when_made() -> None:
    names = run_while_importing("import diffusers\nclass Model(diffusers.UNet2DConditionModel): pass")
    with pytest.raises(MissingExtra, match="diffusers.UNet2DConditionModel.*pip install diffusers"):
        names["Model"]()


@pytest.mark.usefixtures("absent")
def test_subclassing_later_is_use() -> None:
    names = run_while_importing("import diffusers")
    with pytest.raises(MissingExtra):
        type.__call__(type, "Late", names["diffusers"].Model.__mro_entries__(()), {})


@pytest.mark.usefixtures("absent")
def test_the_pip_name_is_given_where_it_differs() -> None:
    names = run_while_importing("from skimage import transform")
    with pytest.raises(MissingExtra, match="pip install scikit-image"):
        names["transform"]()


@pytest.mark.usefixtures("absent")
def test_only_lavis_is_served() -> None:
    with standins.for_lavis(), pytest.raises(ModuleNotFoundError):
        run("import decord", module="transformers.video_utils")
    with standins.for_lavis(), pytest.raises(ModuleNotFoundError):
        run("import a_module_nobody_made_optional")
    with pytest.raises(ModuleNotFoundError):
        run("import decord")


def test_nothing_is_left_where_others_look(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a name that no environment has, so that find_spec is asked for real.
    monkeypatch.setattr(standins, "OPTIONAL", {"nobody_has_this": "video"})
    run_while_importing("import nobody_has_this.part\nfrom nobody_has_this.part import thing")
    assert not [name for name in sys.modules if name.startswith("nobody_has_this")]
    assert importlib.util.find_spec("nobody_has_this") is None
    assert standins.served()["nobody_has_this"] == "not installed"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real package `optional_thing` to be filled in, on the list of optional ones."""
    monkeypatch.setattr(standins, "OPTIONAL", {"optional_thing": "video"})
    monkeypatch.setattr(standins, "_served", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "optional_thing"
    package.mkdir()
    (package / "__init__.py").write_text("answer = 42\n")
    yield package
    sys.modules.pop("optional_thing", None)


def test_the_real_module_comes_first(installed: Path) -> None:
    assert run_while_importing("from optional_thing import answer")["answer"] == 42
    assert standins.served() == {}


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("raise ImportError('no cached_download')", "import optional_thing as used", "fails.*cached_download"),
        ("raise RuntimeError('wrong binary')", "import optional_thing as used", "fails to import.*wrong binary"),
        ("import gone_for_good", "import optional_thing as used", "fails to import.*gone_for_good"),
        ("", "from optional_thing.editor import used", r"installed without optional_thing\.editor"),
        ("", "from optional_thing import used", r"installed without optional_thing\.used"),
    ],
)
def test_a_real_module_that_does_not_fit_is_replaced(installed: Path, source: str, code: str, reason: str) -> None:
    (installed / "__init__.py").write_text(source)
    used = run_while_importing(code)["used"]
    with pytest.raises(MissingExtra, match=reason):
        used()
