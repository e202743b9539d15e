"""Safetensors files written one tensor at a time, so that a model needn't fit into memory."""

import json
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lavis_peft.errors import CheckpointError

_SAFE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Bytes that make a shard full, as transformers has it.
SHARD = 5 * 10**9
# The header stands first and is known last; the format lets it end in spaces. Room for some thousand tensors.
_HEADER = 2**20
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class SafetensorsFile:
    """One file that is being written.

    Args:
        path: A new file.

    Raises:
        CheckpointError: The disk doesn't take it; so of all methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._header = 200
        self._file: IO[bytes] = self._guarded(lambda: open(path, "xb"))  # noqa: SIM115  closed by close()
        self._guarded(lambda: self._file.seek(8 + _HEADER))

    def takes(self, name: str, tensor: Tensor) -> bool:
        """Whether the tensor can come next: its header fits in, and it would begin where readers can map it."""
        return self.size % tensor.element_size() == 0 and self._header + _line(name) <= _HEADER

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        end = self.size + data.nbytes
        place = [self.size, end]
        self._entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        self._guarded(lambda: self._file.write(data))
        self.size = end
        self._header += _line(name)

    def close(self) -> None:
        """Write the header."""
        header = json.dumps(self._entries, separators=(",", ":")).encode().ljust(_HEADER)

        def finish() -> None:
            self._file.seek(0)
            self._file.write(_HEADER.to_bytes(8, "little") + header)
            self._file.close()

        self._guarded(finish)

    def _guarded(self, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            raise CheckpointError(f"{self.path.parent}: can't be written to ({error.strerror or error})") from error


def _line(name: str) -> int:
    return len(name.encode()) + 150


class ShardWriter:
    """Writes ``model.safetensors``, or shards and their index, as the tensors come.

    Args:
        folder: An existing folder.
        limit: Bytes that make a shard full.
    """

    def __init__(self, folder: Path, limit: int = SHARD) -> None:
        self._folder, self._limit = folder, limit
        self._files: list[SafetensorsFile] = []
        self._names: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor.

        Raises:
            CheckpointError: The disk doesn't take it.
        """
        size = tensor.numel() * tensor.element_size()
        file = self._files[-1] if self._files else None
        if file is None or not file.takes(name, tensor) or file.size + size > self._limit:
            if file is not None:
                file.close()
            file = SafetensorsFile(self._folder / f"part-{len(self._files) + 1:05}.tmp")
            self._files.append(file)
            self._names.append([])
        file.add(name, tensor)
        self._names[-1].append(name)

    def close(self) -> int:
        """Finish the files, and write the index where there is more than one.

        Returns:
            The bytes of all tensors.
        """
        if self._files:
            self._files[-1].close()
        count, total = len(self._files), sum(file.size for file in self._files)
        places: dict[str, str] = {}
        for number, (file, names) in enumerate(zip(self._files, self._names, strict=True), 1):
            name = _SAFE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            file.path.rename(self._folder / name)
            places |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (self._folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return total
