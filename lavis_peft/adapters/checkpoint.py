"""Reading and checking checkpoints. A file from outside is data: nothing in it is ever run."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavis_peft.adapters.digest import damaged_record, tensors_intact, unsealed
from lavis_peft.adapters.download import is_address, local_file

# What reads and what writes are two files for their length; callers need know only this one.
from lavis_peft.adapters.files import atomic_file as atomic_file
from lavis_peft.adapters.files import save_atomic as save_atomic
from lavis_peft.adapters.files import save_tensors as save_tensors
from lavis_peft.adapters.placing import taken_over
from lavis_peft.checks import first_line, shortened
from lavis_peft.errors import CheckpointError

#: A module may keep plain containers in its state dict under this name (torch's own convention).
EXTRA_STATE = "_extra_state"


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint into CPU memory, and check it against the digest and the checksums in it.

    Args:
        source: A path or an http(s) address, as `download.local_file` takes it; ``.safetensors``, or anything
            ``torch.save`` wrote.

    Returns:
        The file's mapping, without its digest.

    Raises:
        CheckpointError: It can't be had, can't be read, is damaged, holds more than data, or isn't a mapping.
    """
    name = os.fspath(source)
    path = local_file(name)
    if is_address(name):
        name = f"{name} (kept at {path})"
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
    """Compare the shapes and kinds of the tensors that a state dict and a model share.

    Raises:
        CheckpointError: With the first ten tensors of another shape, or of whole numbers where the model's are not.
    """
    both = [key for key, value in model.items() if isinstance(value, torch.Tensor) and key in state]
    odd = [key for key in both if not isinstance(state[key], torch.Tensor)]
    shaped = [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(model[key].shape)}"
        for key in both
        if key not in odd and state[key].shape != model[key].shape
    ]
    # Precision may differ; torch would also copy numbers of another kind, and say nothing.
    kinds = [
        f"{key} is {state[key].dtype}, the model's {model[key].dtype}"
        for key in both
        if key not in odd and _kind(state[key]) != _kind(model[key])
    ]
    problems = [f"{len(odd)} that are no tensors: {shortened(odd)}"] if odd else []
    problems += [f"{len(shaped)} of another shape: {shortened(shaped)}"] if shaped else []
    problems += [f"{len(kinds)} of another kind: {shortened(kinds)}"] if kinds else []
    if problems:
        raise CheckpointError(f"{source} doesn't fit this model: {'; '.join(problems)}")


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else str(tensor.dtype)


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
    # A module on the meta device, whose weights were never allocated, takes these; any other keeps its parameters where
    # they are, on its device, and as an optimizer may know them.
    assign = any(own[key].is_meta for key in read)
    read = taken_over(read, own) if assign else read
    # Called past the module's own override, which may ask for the parameters that train.
    nn.Module.load_state_dict(module, read, strict=False, assign=assign)


def _matcher(keys: Callable[[str], bool] | Iterable[str]) -> Callable[[str], bool]:
    if callable(keys):
        return keys
    prefixes = tuple(keys)
    return lambda key: key.startswith(prefixes)


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
            metadata = file.metadata()
    except Exception as error:  # a damaged header can trip its reader anywhere, and has no common class for it
        raise CheckpointError(f"{name}: not a whole safetensors file ({first_line(error)})") from error
    if tensors_intact(tensors, metadata) is False:
        raise CheckpointError(_differs(name))
    return tensors


def _read_torch(path: Path, name: str) -> object:
    no_file = f"{name}: not a checkpoint file, or a damaged one"
    try:
        # Before anything in it is read: torch's own reader doesn't look at the checksums.
        record = damaged_record(path) if zipfile.is_zipfile(path) else None
        if record is not None:
            raise CheckpointError(f"{no_file} (the checksum of {record!a} in it is wrong)")
        with warnings.catch_warnings():
            # About pickle protocols: whatever of them matters comes as an error.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message has a paragraph on how to load the file all the same; that is the advice not to take.
        code = "GLOBAL" in str(error) or "allowlisted" in str(error)
        meaning = f"{name}: holds more than tensors and plain values, so it could run code; not read"
        raise CheckpointError(meaning if code else no_file) from None
    except Exception as error:  # a damaged file can trip torch's readers anywhere
        raise CheckpointError(f"{no_file} ({first_line(error)})") from error
    if not isinstance(content, dict):
        return content
    rest, intact = unsealed(content)
    if intact is False:
        raise CheckpointError(_differs(name))
    return rest


def _differs(name: str) -> str:
    return f"{name}: damaged or changed since it was written: the SHA-256 in it isn't that of its content"
