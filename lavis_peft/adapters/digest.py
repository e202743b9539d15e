"""A SHA-256 of what a checkpoint holds, which travels in the file: damage is noticed whatever made it.

torch's archives have checksums of their own that ``torch.load`` doesn't look at; they are checked here too, since they
also tell of damage to a file without our digest, and to the very name that the digest stands under.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_peft import __version__

#: The digest's entry in a file that ``torch.save`` wrote; LAVIS's own readers pass it by.
ENTRY = "lavis_peft.sha256"
#: In the header of a safetensors file, which has no checksum. Names and values are marks of ours, so that damage to
#: some of them doesn't make the file look like another tool's.
_WRITER, _DIGEST, _KIND = "lavis_peft", "lavis_peft.sha256", "sha256:"
_CHUNK = 1 << 20


def digest(content: Mapping[Any, Any]) -> str:
    """The SHA-256 of a mapping's content: names, order, types, shapes and values, down to the bit.

    It doesn't depend on the device, on how the file was written, or on the library's version.

    Args:
        content: Tensors and plain values in plain containers.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: Something else is in it, or it contains itself; names the place.
    """
    found = hashlib.sha256()
    try:
        _walk(found, content, "")
    except RecursionError:
        raise TypeError("it contains itself, or is nested too deeply") from None
    return found.hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its digest under `ENTRY`.

    Raises:
        TypeError: As `digest`.
    """
    return {**content, ENTRY: digest({key: value for key, value in content.items() if key != ENTRY})}


def unsealed(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], bool | None]:
    """The content without its digest, and whether that was right; None where there is none.

    Args:
        content: What is in the file.
    """
    rest = {key: value for key, value in content.items() if key != ENTRY}
    if ENTRY not in content:
        return rest, None
    try:
        return rest, digest(rest) == content[ENTRY]
    except TypeError:
        return rest, False  # whatever is in it, we didn't write it


def tensors_metadata(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The header entries of a safetensors file of these tensors."""
    found = _KIND + digest(dict(sorted(tensors.items())))
    return {"format": "pt", _WRITER: f"written by lavis_peft {__version__}", _DIGEST: found}


def tensors_intact(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bool | None:
    """Whether a safetensors file holds what its header says; None where it says nothing.

    Args:
        tensors: What is in the file.
        metadata: The header's free entries.
    """
    metadata = metadata or {}
    texts = [*metadata, *metadata.values()]
    if not any(_WRITER in text or text.startswith(_KIND) for text in texts):
        return None
    return metadata.get(_DIGEST) == _KIND + digest(dict(sorted(tensors.items())))


def damaged_record(path: Path) -> str | None:
    """The first part of a torch archive whose checksum is wrong; None where all are right, or were never written.

    Args:
        path: A file in the zip format.

    Raises:
        Exception: Whatever Python's zipfile makes of a broken directory; it has no common class for it.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if not any(record.CRC for record in records):
            return None  # torch.serialization.set_crc32_options(False)
        for record in records:
            try:
                with archive.open(record) as stream:
                    while stream.read(_CHUNK):
                        pass
            except (zipfile.BadZipFile, EOFError, zlib.error):
                return record.filename
    return None


def _walk(found: Any, value: Any, place: str) -> None:
    """Add a value to the hash, its type and length before it, so that no two values give the same bytes."""
    if isinstance(value, Tensor):
        _add_tensor(found, value, place)
    elif isinstance(value, dict):
        found.update(b"d%d;" % len(value))
        for key, item in value.items():
            _walk(found, key, place)
            _walk(found, item, f"{place}.{key}" if place else str(key))
    elif type(value) in (list, tuple, torch.Size):
        found.update(b"%s%d;" % (b"l" if isinstance(value, list) else b"t", len(value)))
        for number, item in enumerate(value):
            _walk(found, item, f"{place}[{number}]")
    else:
        plain = _plain(value)
        if plain is None:
            raise TypeError(f"a {type(value).__name__} under {place or 'it'} isn't data that can be read back")
        kind, raw = plain
        found.update(b"%s%d;" % (kind, len(raw)))
        found.update(raw)


def _plain(value: Any) -> tuple[bytes, bytes] | None:
    """A plain value's kind and bytes; None for anything else."""
    kind = type(value)  # not isinstance: True is an int, and a subclass would be read back as code
    if value is None or kind is bool:
        return b"n", str(value).encode()
    if kind is int:
        return b"i", hex(value).encode()
    if kind is float:
        return b"f", struct.pack("<d", value)
    if kind is complex:
        return b"c", struct.pack("<dd", value.real, value.imag)
    if kind is str:
        return b"s", value.encode("utf-8", "surrogatepass")
    if kind is bytes:
        return b"b", value
    if kind in (torch.dtype, torch.device):
        return b"y", str(value).encode()
    return None


def _add_tensor(found: Any, tensor: Tensor, place: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(f"the tensor {place} is {tensor.layout} on {tensor.device}; only dense ones are saved")
    shape = ",".join(map(str, tensor.shape))
    found.update(f"T{tensor.dtype};{shape};".encode())
    if tensor.numel():
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        # The tensor's own memory, not a copy of it.
        found.update(flat.view(torch.uint8).numpy())
