"""Stand-ins for what LAVIS imports at its top and fine-tuning InstructBLIP never uses.

They are handed to LAVIS's own import statements and to nobody else: nothing is put into `sys.modules` and no finder
answers for them, so that `importlib.util.find_spec`, on which transformers, peft and others decide what they may use,
keeps telling the truth.
"""

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from lavis_peft.errors import MissingExtra

# Top-level module → the extra of lavis-peft that brings it; "" where none does, because none of our commands uses it.
OPTIONAL: Mapping[str, str] = {
    "IPython": "",
    "basicsr": "",
    "decord": "video",
    "diffusers": "",
    "easydict": "",
    "einops": "video",
    "fairscale": "video",
    "ftfy": "",
    "h5py": "",
    "librosa": "",
    "matplotlib": "report",
    "moviepy": "",
    "nltk": "",
    "open3d": "",
    "pycocoevalcap": "captions",
    "pycocotools": "captions",
    "scipy": "",
    "skimage": "",
    "sklearn": "adamss",
    "soundfile": "",
    "spacy": "lemmatize",
    "termcolor": "",
    "torchaudio": "",
}

_PIP_NAMES = {"IPython": "ipython", "skimage": "scikit-image", "sklearn": "scikit-learn"}

_ABSENT = "not installed"

_served: dict[str, str] = {}
_importing = 0


def served() -> dict[str, str]:
    """The modules that stand-ins took the place of, each with the reason why the real one wasn't used."""
    return dict(_served)


class StandIn(ModuleType):
    """Takes the place of a module, or of a name in one, until something really uses it.

    Attributes are stand-ins again. Calling or subclassing one raises `MissingExtra`, except while LAVIS is being
    imported, where both are part of merely naming things (`decord.bridge.set_bridge("torch")`).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        if not _importing:
            raise _missing(self.__name__)
        return StandIn(f"{self.__name__}()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        if not _importing:
            raise _missing(self.__name__)
        return (_base_class(self.__name__),)


def _base_class(name: str) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise _missing(name)

    return type(name.rpartition(".")[2], (), {"__init__": __init__})


def _missing(name: str) -> MissingExtra:
    top = name.partition(".")[0]
    reason = _served.get(top, _ABSENT)
    extra = OPTIONAL.get(top, "")
    remedy = f'pip install "lavis-peft[{extra}]"' if extra else f"pip install {_PIP_NAMES.get(top, top)}"
    # Where it is there and broken, only the reason can say what to do.
    advice = f"; `{remedy}` brings it" if reason == _ABSENT else ""
    return MissingExtra(f"LAVIS used {name}, but {top} is {reason}{advice}")


@contextmanager
def for_lavis() -> Iterator[None]:
    """While it lasts, the import statements of LAVIS's modules get a stand-in for an optional module that is absent."""
    global _importing
    genuine = builtins.__import__

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        importer = str((globals or {}).get("__name__", "")).partition(".")[0]
        if importer != "lavis" or level or name.partition(".")[0] not in OPTIONAL:
            return genuine(name, globals, locals, fromlist, level)
        return _import_or_stand_in(lambda: genuine(name, globals, locals, fromlist, level), name, fromlist or ())

    builtins.__import__ = import_
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1
        builtins.__import__ = genuine


def _import_or_stand_in(genuine: Callable[[], ModuleType], name: str, fromlist: Sequence[str]) -> ModuleType:
    top = name.partition(".")[0]
    try:
        module = genuine()
        # `from x import y` looks for y only after __import__ has returned, so look now.
        absent = [item for item in fromlist if not hasattr(module, item)]
        if not absent:
            return module
        _served[top] = f"installed without {name}.{absent[0]}"
    except Exception as error:  # whatever a broken module raises: nothing we do needs it
        _served[top] = _reason(top, error)
    return StandIn(name if fromlist else top)


def _reason(top: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top:
        return _ABSENT if error.name == top else f"installed without {error.name}"
    return f"installed but fails to import ({type(error).__name__}: {error})"
