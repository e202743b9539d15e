"""Checkpoints from a web address: fetched once, whole, and checked against a SHA-256 where one is given."""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

from lavis_peft.adapters.files import atomic_file
from lavis_peft.errors import CheckpointError, WriteError

_MARK = "#sha256="
_CHUNK = 1 << 20
_TIMEOUT = 60.0


def is_address(source: str) -> bool:
    """Whether this is a web address and not a path."""
    return urlparse(source).scheme in ("http", "https")


def local_file(source: str | os.PathLike[str]) -> Path:
    """A checkpoint's file on this machine.

    Args:
        source: A path, or an http(s) address whose file is fetched once, into torch.hub's folder. Either may end in
            ``#sha256=`` and 64 hexadecimal digits, which the file must then have.

    Raises:
        CheckpointError: There is no such file, it can't be had, or it isn't the one with that SHA-256.
    """
    name, wanted = _split(os.fspath(source))
    if is_address(name):
        return _fetched(name, wanted)
    path = Path(name).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{name}: a directory; give the checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"{name}: no such checkpoint file")
    if wanted and _sha256(path, name) != wanted:
        raise CheckpointError(f"{name}: not the file that was asked for: its SHA-256 isn't {wanted}")
    return path


def _split(source: str) -> tuple[str, str]:
    name, mark, wanted = source.rpartition(_MARK)
    if not mark:
        return source, ""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", wanted):
        raise CheckpointError(f"{source}: a SHA-256 has 64 hexadecimal digits, this one is '{wanted}'")
    return name, wanted.lower()


def _fetched(address: str, wanted: str) -> Path:
    # The address is in the name: two servers' `checkpoint_best.pth` are two files.
    short = hashlib.sha256(address.encode()).hexdigest()[:12]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{short}-{Path(urlparse(address).path).name}"
    # A copy that isn't the one asked for may be of an earlier day; it is fetched anew.
    if path.is_file() and (not wanted or _sha256(path, address) == wanted):
        return path
    try:
        _download(address, path, wanted)
    except WriteError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise CheckpointError(f"{address}: can't be downloaded: {error}") from error
    return path


def _download(address: str, path: Path, wanted: str) -> None:
    found, done = hashlib.sha256(), 0
    request = Request(address, headers={"User-Agent": "lavis-peft"})
    with urlopen(request, timeout=_TIMEOUT) as answer, atomic_file(path) as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        with _bar(address, total) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                found.update(chunk)
                done += len(chunk)
                bar.update(len(chunk))
        # A connection that breaks off looks like the end of the file.
        if total is not None and done != total:
            raise CheckpointError(f"{address}: the download broke off after {done:,} of {total:,} bytes; not kept")
        if wanted and found.hexdigest() != wanted:
            raise CheckpointError(
                f"{address}: not the file that was asked for: its SHA-256 is {found.hexdigest()}, not {wanted}; "
                "not kept"
            )


def _bar(address: str, total: int | None) -> "tqdm[Any]":
    name = Path(urlparse(address).path).name
    return tqdm(total=total, desc=name, unit="B", unit_scale=True, delay=2, leave=False, disable=None)


def _sha256(path: Path, name: str) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{name}: can't be read: {error.strerror or error}") from error
    return found.hexdigest()
