"""Features of one kind on the disk: memory-mapped files of equal entries, and an index that says where each is.

A process that computes features writes a pair of files of its own, ``NAME.data`` and ``NAME.index``. An entry's data is
on the disk before its line of the index is, and that line carries checksums of the data and of itself: what a killed
process leaves half-written doesn't count, and nobody waits for a lock.
"""

import contextlib
import logging
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_peft.adapters.files import append, writing
from lavis_peft.errors import WriteError
from lavis_peft.features.names import unique_name

_log = logging.getLogger(__name__)

#: Key, place in the data file, checksum of the data; then the checksum of these three.
_BODY = struct.Struct("<32sQI")
_SUM = struct.Struct("<I")
LINE = _BODY.size + _SUM.size
#: Entries that turned out to be damaged: file and place.
_DAMAGED = "damaged.txt"
_PLACE = re.compile(r"(\S+) (\d+)")
#: Data files that a process has open at once, at most: each takes one of its file descriptors, often 1,024.
_OPEN = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a feature lies.

    Args:
        file: Its data file's name without the ending.
        place: Its number in there.
        checksum: CRC-32 of its bytes.
    """

    file: str
    place: int
    checksum: int


class Store:
    """The features of one encoder and one image transform.

    Args:
        folder: Where they lie.
        shape: Of an entry: patches and width.
        dtype: In which they are kept.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder = folder
        self.shape = shape
        self.dtype = dtype
        self.entry_bytes = shape[0] * shape[1] * dtype.itemsize
        self._index: dict[bytes, Entry] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._checked: set[bytes] = set()
        self._named: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A data worker that is started anew opens the files itself.
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def reload(self) -> None:
        """Read what all processes have written so far; one reading of each index file."""
        damaged = self._damaged()
        self._index = {}
        for path in sorted(self.folder.glob("*.index")):
            for key, entry in self._entries(path):
                if (entry.file, entry.place) not in damaged:
                    self._index[key] = entry

    def _entries(self, path: Path) -> Iterator[tuple[bytes, Entry]]:
        data = path.with_suffix(".data")
        try:
            whole = data.stat().st_size // self.entry_bytes if data.exists() else 0
            content = path.read_bytes()
        except OSError as error:  # another user's, perhaps
            self._name(path.name, error)
            return
        for start in range(0, len(content) - LINE + 1, LINE):
            body = content[start : start + _BODY.size]
            (checksum,) = _SUM.unpack_from(content, start + _BODY.size)
            key, place, data_sum = _BODY.unpack(body)
            if zlib.crc32(body) == checksum and place < whole:
                yield key, Entry(path.stem, place, data_sum)

    def _damaged(self) -> set[tuple[str, int]]:
        path = self.folder / _DAMAGED
        try:
            content = path.read_text(errors="replace") if path.exists() else ""
        except OSError as error:  # they are found anew
            self._name(path.name, error)
            return set()
        lines = map(_PLACE.fullmatch, content.splitlines())
        return {(found[1], int(found[2])) for found in lines if found}

    def read(self, key: bytes) -> Tensor | None:
        """A feature (patches, width); None where there is none, or a damaged one, which no longer counts then.

        None, too, where the system refuses to read it, which says nothing about the feature.
        """
        entry = self._index.get(key)
        if entry is None:
            return None
        try:
            content = self._bytes(entry)
        except (FileNotFoundError, ValueError):  # the file is gone or was cut
            content = bytearray()
        except OSError as error:
            self._name(f"{entry.file}.data", error)
            return None
        # Once in each process: the copy that was read, so that nothing can change between the look and the use.
        if len(content) == self.entry_bytes and (key in self._checked or zlib.crc32(content) == entry.checksum):
            self._checked.add(key)
            return torch.frombuffer(content, dtype=self.dtype).view(self.shape)
        self._drop(key, entry)
        return None

    def _bytes(self, entry: Entry) -> bytearray:
        start = entry.place * self.entry_bytes
        mapped = self._maps.get(entry.file)
        if mapped is None or len(mapped) < start + self.entry_bytes:  # the file may have grown since
            self._maps.pop(entry.file, None)
            while len(self._maps) >= _OPEN:
                del self._maps[next(iter(self._maps))]
            with open(self.folder / f"{entry.file}.data", "rb") as file:
                mapped = self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return bytearray(memoryview(mapped)[start : start + self.entry_bytes])  # one copy, and the caller's own

    def _name(self, file: str, error: OSError) -> None:
        """Warn of a file that can't be read, once."""
        if file not in self._named:
            self._named.add(file)
            _log.warning("%s: can't be read: %s", self.folder / file, error.strerror)

    def _drop(self, key: bytes, entry: Entry) -> None:
        del self._index[key]
        _log.warning("%s: entry %d of %s.data is damaged; it is computed anew", self.folder, entry.place, entry.file)
        try:
            append(self.folder / _DAMAGED, f"{entry.file} {entry.place}\n")
        except WriteError as error:  # who may only read finds it anew each time
            _log.warning("%s", error)

    def verify(self) -> Iterator[bool]:
        """Read every entry; says of each whether it is whole."""
        self._checked.clear()
        for key in list(self._index):
            yield self.read(key) is not None

    def bytes_on_disk(self) -> int:
        """Bytes of all its files."""
        sizes = 0
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # a temporary file, gone by now
                sizes += path.stat().st_size
        return sizes


class Writer:
    """Adds features to a store, in files that no other process writes to; they are made at the first one.

    Args:
        store: The store; it learns of them by `reload`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._base: Path | None = None
        self._count = 0

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Write features; when this returns, they are on the disk.

        Args:
            keys: One each.
            features: (number of keys, patches, width), in the store's precision, on the CPU.

        Raises:
            DiskFull, WriteError: They can't be written; what is in the store stays as it was.
        """
        base, number = self._base or self._store.folder / unique_name(), self._count - 1
        rows = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in features]
        lines = b""
        for number, (key, row) in enumerate(zip(keys, rows, strict=True), start=self._count):
            body = _BODY.pack(key, number, zlib.crc32(row))
            lines += body + _SUM.pack(zlib.crc32(body))
        self._base, self._count = None, 0  # after a failure nobody knows how much was written: new files are begun
        self._append(base, ".data", b"".join(rows))
        self._append(base, ".index", lines)
        self._base, self._count = base, number + 1

    @staticmethod
    def _append(base: Path, ending: str, content: bytes) -> None:
        path = base.with_name(base.name + ending)
        with writing(path), open(path, "ab", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
