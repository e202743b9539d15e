"""Digests of files, each computed once: a file of the same size and the same times has the same content."""

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

#: Size, time of the last change of content, time of the last change of anything: who replaces a file may set the second
#: back (unzip, cp -p and rsync do), and never the third.
_State = tuple[int, int, int]


class FileDigests:
    """SHA-256 of files' contents, remembered in a folder that processes share; each appends to a file of its own.

    Args:
        folder: Where they are remembered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: By path and state, so that machines that have files of their own under one path don't displace each other.
        self._known: dict[tuple[str, _State], bytes] = {}
        self._new: list[str] = []
        self._own = folder / f"{unique_name()}.jsonl"
        self.reload()

    def reload(self) -> None:
        """Take in what other processes have found out."""
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                lines = path.read_bytes().splitlines()
            except OSError as error:  # another user's, perhaps; what is in it is computed again
                _log.warning("%s: can't be read: %s", path, error.strerror)
                continue
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            path, *state, digest = json.loads(line)
            value = bytes.fromhex(digest)
        except (ValueError, TypeError):
            return  # half a line, of a process that was killed
        if isinstance(path, str) and [type(each) for each in state] == [int] * 3 and len(value) == 32:
            self._known[path, tuple(state)] = value

    def known(self, path: str | Path) -> bytes | None:
        """A file's digest, if it was computed before and the file is unchanged.

        Raises:
            OSError: It isn't there.
        """
        return self._known.get((str(path), _state(path)))

    def of(self, path: str | Path) -> bytes:
        """A file's digest; remembered on the disk at the next `save`.

        Raises:
            OSError: It can't be read.
        """
        now, state = time.time_ns(), _state(path)
        if (known := self._known.get((str(path), state))) is not None:
            return known
        digest = _sha256(Path(path))
        if now - max(state[1:]) > _FRESH:
            self._known[str(path), state] = digest
            self._new.append(json.dumps([str(path), *state, digest.hex()]) + "\n")
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


def _state(path: str | Path) -> _State:
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256(path: Path) -> bytes:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.digest()
