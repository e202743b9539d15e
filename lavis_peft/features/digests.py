"""Digests of files, each computed once: a file of the same size and time of change has the same content."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lavis_peft.adapters.files import append
from lavis_peft.features.names import unique_name

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20
#: A file that was changed so shortly before, nanoseconds, may be changed again without another time to show for it.
_FRESH = 2 * 10**9
_LINES = 1000


class FileDigests:
    """SHA-256 of files' contents, remembered in a folder that processes share; each appends to a file of its own.

    Args:
        folder: Where they are remembered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int, bytes]] = {}
        self._new: list[str] = []
        self._own = folder / f"{unique_name()}.jsonl"
        self.reload()

    def reload(self) -> None:
        """Take in what other processes have found out."""
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            path, size, changed, digest = json.loads(line)
            value = bytes.fromhex(digest)
        except (ValueError, TypeError):
            return  # half a line, of a process that was killed
        if isinstance(path, str) and isinstance(size, int) and isinstance(changed, int) and len(value) == 32:
            self._known[path] = size, changed, value

    def known(self, path: str | Path) -> bytes | None:
        """A file's digest, if it was computed before and the file is unchanged.

        Raises:
            OSError: It isn't there.
        """
        found, state = self._known.get(str(path)), Path(path).stat()
        return found[2] if found and found[:2] == (state.st_size, state.st_mtime_ns) else None

    def of(self, path: str | Path) -> bytes:
        """A file's digest; remembered on the disk at the next `save`.

        Raises:
            OSError: It can't be read.
        """
        if (known := self.known(path)) is not None:
            return known
        state = Path(path).stat()
        digest = _sha256(Path(path))
        if time.time_ns() - state.st_mtime_ns > _FRESH:
            self._known[str(path)] = state.st_size, state.st_mtime_ns, digest
            self._new.append(json.dumps([str(path), state.st_size, state.st_mtime_ns, digest.hex()]) + "\n")
            if len(self._new) >= _LINES:
                self.save()
        return digest

    def of_all(self, paths: Iterable[str], progress: Callable[[], object] = lambda: None) -> dict[str, bytes]:
        """The digests of files that can be read; the others are left out."""
        found = {}
        for path in paths:
            with contextlib.suppress(OSError):  # whoever opens it says what is wrong with it
                found[path] = self.of(path)
            progress()
        self.save()
        return found

    def save(self) -> None:
        """Write down what was computed; where that can't be, the next run computes it again."""
        if self._new:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                append(self._own, "".join(self._new))
            except OSError as error:
                _log.warning("digests of %d files aren't remembered: %s", len(self._new), error)
            self._new = []


def _sha256(path: Path) -> bytes:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.digest()
