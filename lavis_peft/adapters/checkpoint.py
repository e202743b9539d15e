"""Reading, checking and writing checkpoints. A file from outside is data: nothing in it is ever run."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn

from lavis_peft.errors import CheckpointError

_SHOWN = 10
#: A module may keep plain containers in its state dict under this name (torch's own convention).
EXTRA_STATE = "_extra_state"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the path's place once it is whole and on the disk.

    Args:
        path: The file; its folder is made if need be.

    Raises:
        OSError: Writing failed. What was at ``path`` before is still there, and no half-written file is left.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, for only within a file system is the renaming one step.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomic(obj: object, path: str | os.PathLike[str]) -> None:
    """Save with ``torch.save`` so that the path always holds a whole file: the old one or the new one.

    Args:
        obj: Tensors and plain containers; nothing else can be read back.
        path: The file; its folder is made if need be.

    Raises:
        OSError: As `atomic_file`.
    """
    with atomic_file(path) as file:
        torch.save(obj, file)


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint into CPU memory.

    Args:
        source: A path or an http(s) address (downloaded once, into torch.hub's folder); ``.safetensors``, or anything
            ``torch.save`` wrote.

    Returns:
        The file's mapping, as it is in the file.

    Raises:
        CheckpointError: It can't be had, can't be read, holds more than data, or isn't a mapping.
    """
    name = os.fspath(source)
    path = _download(name) if urlparse(name).scheme in ("http", "https") else Path(name).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{name}: a directory; give the checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"{name}: no such checkpoint file")
    content = _read_safetensors(path, name) if path.suffix == ".safetensors" else _read_torch(path, name)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{name}: holds a {type(content).__name__}, not a checkpoint's mapping of names to tensors"
        )
    return content


def model_state(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> dict[str, Any]:
    """The model's state dict in a checkpoint: its ``model`` entry, or the whole where it is a plain state dict.

    Args:
        checkpoint: What `read_checkpoint` returned.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: It holds something else than tensors.
    """
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{source}: its `model` entry is a {type(state).__name__}, not a mapping of names to tensors"
        )
    odd = [
        str(key)
        for key, value in state.items()
        if not isinstance(key, str) or not (isinstance(value, torch.Tensor) or key.endswith(EXTRA_STATE))
    ]
    if odd:
        raise CheckpointError(f"{source}: not a model's state; no tensors under {shortened(odd)}")
    return dict(state)


def check_keys(
    required: Collection[str], known: Collection[str], found: Collection[str], source: str = "the checkpoint"
) -> None:
    """Compare a state dict's keys with a model's.

    Args:
        required: Keys that must be there.
        known: Keys that may be there, the required ones among them or not.
        found: Keys of the state dict.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: With the missing and the foreign keys, the first ten of each.
    """
    missing = [key for key in required if key not in found]
    foreign = [key for key in found if key not in known and key not in required]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {shortened(sorted(missing))}")
    if foreign:
        problems.append(f"{len(foreign)} that it doesn't have: {shortened(sorted(foreign))}")
    if problems:
        raise CheckpointError(f"{source} doesn't fit this model; keys: " + "; ".join(problems))


def check_shapes(state: Mapping[str, Any], model: Mapping[str, Any], source: str = "the checkpoint") -> None:
    """Compare the shapes of tensors that a state dict and a model share.

    Raises:
        CheckpointError: With the first ten tensors of another shape.
    """
    wrong = [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(model[key].shape)}"
        for key in state
        if key in model
        and isinstance(state[key], torch.Tensor)
        and isinstance(model[key], torch.Tensor)
        and state[key].shape != model[key].shape
    ]
    if wrong:
        raise CheckpointError(f"{source} doesn't fit this model: {len(wrong)} of another shape: {shortened(wrong)}")


def load_base(
    module: nn.Module,
    state: Mapping[str, Any],
    *,
    allow_missing: Callable[[str], bool] | Iterable[str] = (),
    allow_foreign: Callable[[str], bool] | Iterable[str] = (),
    source: str = "the checkpoint",
) -> None:
    """Load base weights into a module, leaving nothing to chance.

    Args:
        module: The module, before any adapter is injected.
        state: Its state dict, under plain names.
        allow_missing: Prefixes of keys, or a function of a key, that the checkpoint needn't have.
        allow_foreign: Likewise for keys that the checkpoint may have and the module hasn't; they aren't read.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: Keys are missing, fit nothing, or have another shape. Nothing is loaded then.
    """
    own, may_lack, may_have = module.state_dict(), _matcher(allow_missing), _matcher(allow_foreign)
    read = {key: value for key, value in state.items() if key in own or not may_have(key)}
    check_keys([key for key in own if not may_lack(key)], own, read, source)
    check_shapes(read, own, source)
    # Put in place and not copied: a module on the meta device, whose weights were never allocated, takes these.
    read = {key: value.to(own[key].dtype) for key, value in read.items()}
    # Called past the module's own override, which may ask for the parameters that train.
    nn.Module.load_state_dict(module, read, strict=False, assign=True)


def shortened(names: Iterable[object], shown: int = _SHOWN) -> str:
    """The first names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def _matcher(keys: Callable[[str], bool] | Iterable[str]) -> Callable[[str], bool]:
    if callable(keys):
        return keys
    prefixes = tuple(keys)
    return lambda key: key.startswith(prefixes)


def _download(address: str) -> Path:
    # The address is in the name: two servers' `checkpoint_best.pth` are two files.
    short = hashlib.sha256(address.encode()).hexdigest()[:12]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{short}-{Path(urlparse(address).path).name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except (URLError, OSError) as error:
            raise CheckpointError(f"{address}: can't be downloaded: {error}") from error
    return path


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{name}: not a whole safetensors file ({error})") from error


def _read_torch(path: Path, name: str) -> object:
    no_file = f"{name}: not a checkpoint file, or a damaged one"
    try:
        with warnings.catch_warnings():
            # About pickle protocols: whatever of them matters comes as an error.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message has a paragraph on how to load the file all the same; that is the advice not to take.
        code = "GLOBAL" in str(error) or "allowlisted" in str(error)
        meaning = f"{name}: holds more than tensors and plain values, so it could run code; not read"
        raise CheckpointError(meaning if code else no_file) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        detail = str(error).partition("\n")[0]
        raise CheckpointError(f"{no_file} ({detail})" if detail else no_file) from error
