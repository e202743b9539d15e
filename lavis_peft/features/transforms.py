"""Image processors: which steps of one draw random numbers, and all of its settings as a value that can be compared."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError

#: torchvision's transforms that compute the same each time, and a function of LAVIS's CLIP processors.
_FIXED = frozenset(
    [
        "CenterCrop",
        "ConvertImageDtype",
        "Grayscale",
        "Normalize",
        "Pad",
        "PILToTensor",
        "Resize",
        "ToDtype",
        "ToImage",
        "ToPILImage",
        "ToPureTensor",
        "ToTensor",
        "_convert_to_rgb",
    ]
)
#: Whose classes are known by their names: they change where the library does, and their code is hashed nowhere.
_LIBRARIES = frozenset(["builtins", "abc", "lavis", "numpy", "torch", "torchvision"])


def random_steps(processor: Any) -> list[str]:
    """The names of an image processor's steps that draw random numbers, or that aren't known not to.

    Args:
        processor: One that says so itself in an attribute ``deterministic``, or one of LAVIS's kind, which does nothing
            but call its ``transform``, made of torchvision's.
    """
    says = getattr(processor, "deterministic", None)
    if isinstance(says, bool):
        return [] if says else [type(processor).__name__]
    transform = getattr(processor, "transform", None)
    if transform is None or not _only_transforms(type(processor)):
        return [type(processor).__name__]
    return [_name(step) for step in _steps(transform) if not _is_fixed(step)]


def _only_transforms(cls: type) -> bool:
    """Whether a processor is called as LAVIS's are: ``return self.transform(item)``, and nothing besides."""
    code = getattr(inspect.getattr_static(cls, "__call__", None), "__code__", None)
    return code is not None and set(code.co_names) <= {"transform"}


def _is_fixed(step: Any) -> bool:
    # A class of one's own may have a name of torchvision's.
    return _name(step) in _FIXED and str(step.__module__).startswith(("torchvision.", "lavis."))


def _steps(transform: Any) -> Iterator[Any]:
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, (list, tuple)) and type(transform).__name__ == "Compose":
        for each in inner:
            yield from _steps(each)
    elif isinstance(transform, torch.nn.Sequential):
        for each in transform:
            yield from _steps(each)
    else:
        yield transform


def _name(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)


def description(processor: Any) -> Any:
    """An image processor's class, code and settings as plain values, equal for processors that compute the same.

    Raises:
        ConfigError: It has a setting that can't be compared.
    """
    return {**_sources(type(processor)), "settings": _plain(processor, type(processor).__name__, 0)}


def _sources(cls: type) -> dict[str, list[str]]:
    """Digests of a class's code and that of the classes it is derived from; of libraries' the names must do."""
    own = [each for each in cls.__mro__ if each.__module__.partition(".")[0] not in _LIBRARIES]
    return {"code": [_source(each) for each in own]} if own else {}


def _source(cls: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:16]
    except (OSError, TypeError):  # typed into an interpreter
        return "unknown"


def _plain(value: Any, where: str, depth: int) -> Any:
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (torch.dtype, torch.device, PurePath, np.generic)):
        return str(value)
    if OmegaConf.is_config(value):  # LAVIS's processors keep a YAML's lists as they come
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value)).hexdigest()]
    if depth > 8:
        raise ConfigError(f"run.feature_cache: the image processor's {where} is nested too deeply to be compared")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, FunctionType):
        read = [cell.cell_contents for cell in value.__closure__ or ()], value.__defaults__, value.__kwdefaults__
        inner = _plain(read, f"{where}'s variable", depth + 1)
        return [value.__qualname__, hashlib.sha256(_code(value.__code__).encode()).hexdigest(), inner]
    if isinstance(value, MethodType):
        return _plain([value.__func__, value.__self__], where, depth + 1)
    if isinstance(value, partial):
        return _plain([value.func, value.args, value.keywords], where, depth + 1)
    return _object(value, where, depth)


def _code(code: Any) -> str:
    inner = [_code(each) if hasattr(each, "co_code") else repr(each) for each in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, inner))


def _object(value: Any, where: str, depth: int) -> Any:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.nn.Module):
        hidden = {name for name in vars(torch.nn.Module()) if name not in ("_modules", "_buffers", "_parameters")}
        state = {name: item for name, item in vars(value).items() if name not in hidden}
    elif hasattr(value, "__dict__"):
        state = vars(value)
    else:
        raise ConfigError(f"run.feature_cache: the image processor's {where}, a {kind}, can't be compared")
    own = _sources(type(value)) if depth else {}  # the processor's own is told beside its settings
    return {"class": kind, **own, **{name: _plain(state[name], f"{where}.{name}", depth + 1) for name in sorted(state)}}
