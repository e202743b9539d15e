"""One run folder, one run: a lock that ends with the process that holds it."""

import contextlib
import errno
import logging
import os
import socket
import tempfile
import weakref
from pathlib import Path

from lavis_peft.adapters.files import writing
from lavis_peft.errors import ConfigError
from lavis_peft.runners import distributed
from lavis_peft.runners.processes import Holder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"
_LONGEST = 1 << 16
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_log = logging.getLogger(__name__)


class RunLock:
    """A held lock. The system lets go of it when the process ends, however it ends.

    The lock is `flock`'s and not POSIX's `lockf`: that one ends as soon as this process closes *any* handle of the
    file, such as one it was read with. In return, `flock` is shared with children that are forked; so a child closes
    its copy first of all, or a data-loading process that outlives the run would go on holding its folder.

    Args:
        path: The file.
        handle: Of the locked file; None where the file system has no locks, and the file's being there is the lock.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self._path = path
        self._handle = handle
        self._pid = os.getpid()
        _held.add(self)

    def release(self) -> None:
        """Let go, and remove the file; harmless a second time."""
        if self._pid != os.getpid():
            return
        _held.discard(self)
        self._pid = -1
        # Removed before it is let go: who opened it meanwhile finds that it isn't the folder's file any more.
        self._path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the handle; in a forked child, this leaves the parent's lock as it is."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.release()


_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def hold(folder: Path) -> RunLock | None:
    """Take a run's folder for this run, on the main process; every process raises where it is taken.

    Args:
        folder: The run's folder, which exists.

    Returns:
        The lock, to be released at the run's end; None on the other processes.

    Raises:
        ConfigError: Another run has it; names that.
        WriteError: The file can't be written.
    """
    lock: RunLock | None = None
    refusal: Exception | None = None
    if distributed.is_main():
        try:
            lock = _take(folder / NAME)
        except (ConfigError, OSError) as error:
            refusal = error
    refusal = distributed.from_main(refusal)
    if refusal is not None:
        raise refusal
    return lock


def _take(path: Path) -> RunLock:
    with writing(path):
        if not _has_locks(path):
            return _take_by_file(path)
        handle = _locked(path)
        former = Holder.read(os.pread(handle, _LONGEST, 0).decode(errors="replace"))
        os.ftruncate(handle, 0)
        os.pwrite(handle, Holder.this().text(), 0)
    if former is not None:
        _log.warning("%s was held by %s, which has ended; taken over", path.parent, former)
    return RunLock(path, handle)


def _locked(path: Path) -> int:
    """Open and lock the folder's lock file.

    Raises:
        ConfigError: It is locked.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            holder = Holder.read(os.pread(handle, _LONGEST, 0).decode(errors="replace"))
            os.close(handle)
            raise _refusal(path, holder) from None
        os.close(handle)  # its holder removed it between the two calls


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _has_locks(path: Path) -> bool:
    """Whether the file system locks files; tried on another file, so as not to make this one."""
    if fcntl is None:
        return False
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
    return True


def _take_by_file(path: Path) -> RunLock:
    """Where there are no locks: the file's being there is the lock, and that of a dead process is removed."""
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _remove_dead(path)
            continue
        os.write(handle, Holder.this().text())
        os.close(handle)
        return RunLock(path, None)


def _remove_dead(path: Path) -> None:
    try:
        found = path.read_text()
    except FileNotFoundError:
        return
    holder = Holder.read(found)
    if holder is None or not holder.is_dead:
        raise _refusal(path, holder, f"; if it has ended, remove {path}")
    # Renamed first, since another process may have judged the same and already put its own in this one's place.
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.read_text() != found:
        aside.rename(path)
        return
    aside.unlink()
    _log.warning("%s was held by %s, which has ended; taken over", path.parent, holder)


def _refusal(path: Path, holder: Holder | None, note: str = "") -> ConfigError:
    who = f"by {holder}" if holder else "by a process that its run.lock doesn't name"
    return ConfigError(
        f"run.output_dir: {path.parent} is in use {who}; wait for that run or end it, or give this one a folder of its "
        f"own{note}"
    )
