"""Weights on the disk, read one tensor at a time."""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.checkpoint import model_state, read_checkpoint
from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError

_SAFE, _TORCH = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"
# How much is read from a torch file before it is mapped anew; pages once read would count as ours until then.
_REMAP = 2**29


class TensorFile:
    """One file of tensors, of which a single one is in memory at a time.

    Args:
        path: A ``.safetensors`` file, or anything ``torch.save`` wrote with tensors at the top or under ``model``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: Mapping[str, Any] | None = None
        self._read = 0

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor in the file.

        Raises:
            CheckpointError: The file can't be read.
        """
        if self.path.suffix != ".safetensors":
            return {key: tuple(value.shape) for key, value in self._torch().items()}
        with self._safe() as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        if self.path.suffix == ".safetensors":
            # Opened for each tensor: what was read from a mapped file stays in memory as long as it is open.
            with self._safe() as file:
                return file.get_tensor(name)
        if self._read > _REMAP:
            self._mapped, self._read = None, 0
        tensor = self._torch()[name]
        self._read += tensor.numel() * tensor.element_size()
        return tensor

    def _safe(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path}: not a whole safetensors file ({error})") from error

    def _torch(self) -> Mapping[str, Any]:
        if self._mapped is None:
            self._mapped = model_state(self._load(), str(self.path))
        return self._mapped

    def _load(self) -> dict[str, Any]:
        if not zipfile.is_zipfile(self.path):
            return read_checkpoint(self.path)  # torch's old format can't be mapped; what is no file of it is named
        try:
            content = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError):
            return read_checkpoint(self.path)  # for its messages
        return content if isinstance(content, dict) else read_checkpoint(self.path)


@dataclass(frozen=True)
class Weights:
    """Tensors by name, wherever each of them lies.

    Args:
        entries: Name -> the file and the name it has there, or the tensor itself.
    """

    entries: Mapping[str, tuple[TensorFile, str] | Tensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        entry = self.entries[name]
        return entry if isinstance(entry, Tensor) else entry[0].read(entry[1])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; it isn't read."""
        entry = self.entries[name]
        return tuple(entry.shape) if isinstance(entry, Tensor) else entry[0].shapes[entry[1]]

    def parameters(self) -> int:
        """The number of values of all tensors."""
        return sum(torch.Size(self.shape(name)).numel() for name in self)

    def below(self, prefix: str) -> "Weights":
        """The tensors whose names begin so, without that beginning."""
        return Weights({key[len(prefix) :]: entry for key, entry in self.entries.items() if key.startswith(prefix)})

    def under(self, prefix: str) -> "Weights":
        """The tensors with something put before their names."""
        return Weights({prefix + key: entry for key, entry in self.entries.items()})

    def __or__(self, other: "Weights") -> "Weights":
        return Weights({**self.entries, **other.entries})


def open_weights(source: Path) -> Weights:
    """Look into a file, or into a folder in Hugging Face's format; no tensor is read.

    Args:
        source: A file of tensors, or a folder with ``model.safetensors`` or ``pytorch_model.bin``, in shards or not.

    Raises:
        CheckpointError: There are no weights, or a file is damaged or missing.
    """
    if not source.is_dir():
        if not source.is_file():
            raise CheckpointError(f"{source}: no such file or folder")
        return _entries([source])
    for name in (_SAFE, _TORCH):
        if (source / name).is_file():
            return _entries([source / name])
        if (source / f"{name}{_INDEX}").is_file():
            return _sharded(source / f"{name}{_INDEX}")
    raise CheckpointError(f"{source}: no weights in this folder; looked for {_SAFE} and {_TORCH}, in shards or not")


def _entries(paths: Iterable[Path]) -> Weights:
    files = [TensorFile(path) for path in paths]
    return Weights({name: (file, name) for file in files for name in file.shapes})


def _sharded(index: Path) -> Weights:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights ({error!r})") from error
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index}: names files that aren't there: {shortened(missing)}")
    weights = _entries(index.parent / name for name in names)
    if lost := [key for key in where if key not in weights]:
        raise CheckpointError(f"{index}: names tensors that no file has: {shortened(lost)}")
    return weights
