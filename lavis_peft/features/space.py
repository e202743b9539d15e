"""What a feature depends on besides its picture: the encoder and the image transform, each such pair with a folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavis_peft.adapters.files import atomic_file
from lavis_peft.errors import ConfigError
from lavis_peft.features.spec import DTYPES
from lavis_peft.features.store import Store

_HEADER = "space.json"
#: Changes when features are computed or laid out otherwise, so that older ones aren't read.
_VERSION = 1


@dataclass(frozen=True)
class Space:
    """A kind of features.

    Args:
        root: The cache's folder.
        encoder: All of the vision encoder that its output depends on, plain values.
        transform: Likewise of the image processor.
        shape: Patches and width.
        dtype: In which features are kept, a word of `DTYPES`.
    """

    root: Path
    encoder: Any
    transform: Any
    shape: tuple[int, int]
    dtype: str

    @property
    def content(self) -> dict[str, Any]:
        """It as plain values."""
        own = {"encoder": self.encoder, "transform": self.transform, "shape": list(self.shape), "dtype": self.dtype}
        return {"version": _VERSION, **own}

    @property
    def folder(self) -> Path:
        """Its folder; the name is a digest of the content."""
        text = json.dumps(self.content, sort_keys=True)
        return self.root / hashlib.sha256(text.encode()).hexdigest()[:32]

    def store(self) -> Store:
        """Its features, as far as they are there."""
        store = Store(self.folder, self.shape, getattr(torch, DTYPES[self.dtype]))
        store.reload()
        return store

    def fingerprint(self) -> str | None:
        """The fingerprint of the encoder's weights as it was when features were first computed; None before."""
        header = read_header(self.folder)
        return None if header is None else str(header.get("fingerprint"))

    def create(self, fingerprint: str) -> None:
        """Make its folder, with a description to read in it; nothing happens where it is there.

        Raises:
            DiskFull, WriteError: It can't be made.
        """
        if self.fingerprint() is None:
            with atomic_file(self.folder / _HEADER) as file:
                text = json.dumps({**self.content, "fingerprint": fingerprint}, indent=2)
                file.write(f"{text}\n".encode())


def read_header(folder: Path) -> dict[str, Any] | None:
    """What a folder's features are of; None where it holds none."""
    try:
        found = json.loads((folder / _HEADER).read_text())
        rows, width = found["shape"]
        right = rows * width > 0 and found["dtype"] in DTYPES and isinstance(found["fingerprint"], str)
        right = (
            right and "class" in found["transform"]["settings"] and {"weights", "image_size"} <= set(found["encoder"])
        )
        return found if right and found["version"] == _VERSION else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stores(root: Path) -> list[tuple[dict[str, Any], Store]]:
    """Every kind of features in a cache: its description, and the features.

    Raises:
        ConfigError: The folder isn't one, or can't be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder")
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ConfigError(f"{root}: can't be read: {error.strerror}") from error
    found = []
    for folder in folders:
        header = read_header(folder)
        if header is None:
            continue
        rows, width = header["shape"]
        store = Store(folder, (int(rows), int(width)), getattr(torch, DTYPES[header["dtype"]]))
        store.reload()
        found.append((header, store))
    return found
