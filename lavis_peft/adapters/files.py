"""Writing files so that a path always holds a whole one, and saying in one sentence why one can't be written."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lavis_peft.adapters.digest import sealed, tensors_metadata
from lavis_peft.errors import DiskFull, UserError, WriteError

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
}


@contextmanager
def writing(path: str | os.PathLike[str], note: str = "") -> Iterator[None]:
    """Name the file and the reason where what is done in the `with` block can't write it.

    Args:
        path: The file.
        note: More to say after the reason.

    Raises:
        DiskFull: There is no room or no quota for it.
        WriteError: Any other failure of the system's.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _system_error(error)
        # Another file may be read or written meanwhile; that is its own affair.
        if reason is None or _names_another(reason, Path(path)):
            raise
        kind = DiskFull if reason.errno in _FULL else WriteError
        why = _FULL.get(reason.errno or 0) or reason.strerror or str(reason)
        raise kind(f"{os.fspath(path)}: can't be written: {why}{note}") from error


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the path's place once it is whole and on the disk.

    Args:
        path: The file; its folder is made if need be.

    Raises:
        DiskFull: There is no room for it. What was at ``path`` before is still there, no half-written file is left.
        WriteError: Writing failed otherwise; likewise.
    """
    target = Path(path)
    # In the same directory, for only within a file system is the renaming one step.
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    kept = "; the one that was there is kept" if target.exists() else ""
    try:
        with writing(target, kept):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # it never came to be, where the folder can't be written
            temporary.unlink()
    _sync_folder(target.parent)


def save_atomic(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Save with ``torch.save``, with a digest of the content in it, so that the path always holds a whole file.

    Args:
        content: Tensors and plain containers.
        path: The file; its folder is made if need be.

    Raises:
        DiskFull, WriteError: As `atomic_file`.
        TypeError: Something in it could not be read back as data; names it.
    """
    whole = sealed(content)
    with atomic_file(path) as file:
        torch.save(whole, file)


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a safetensors file, with a digest of the content in its header; whole or not at all.

    Args:
        tensors: Contiguous, on the CPU, none sharing memory with another.
        path: The file; its folder is made if need be.

    Raises:
        DiskFull, WriteError: As `atomic_file`.
    """
    from safetensors.torch import save

    with atomic_file(path) as file:
        file.write(save(dict(tensors), metadata=tensors_metadata(tensors)))


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add text to the end of a file: all of it or, where the disk is full, nothing.

    Args:
        path: The file; made if need be.
        text: Whole lines.

    Raises:
        DiskFull, WriteError: As `atomic_file`.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        rest = text.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.truncate(path, before)
            raise


def _sync_folder(folder: Path) -> None:
    """Bring a renaming onto the disk; not every system and file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _system_error(error: BaseException) -> OSError | None:
    """The system's refusal behind an error: safetensors gives its number in a text, torch's writer fails over it."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    behind = error.__cause__ or error.__context__
    return behind if isinstance(error, RuntimeError) and isinstance(behind, OSError) else None


def _names_another(error: OSError, path: Path) -> bool:
    if not isinstance(error.filename, str):
        return False
    named = Path(error.filename)
    return named.parent != path.parent and named not in (path, *path.parents)
