"""The pictures: are they there, and reading them."""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from lavis_peft.checks import first_line
from lavis_peft.datasets.records import Record, summary
from lavis_peft.errors import DataError

# What Pillow's decoders raise on damaged files, found in its source; there is no common base class.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UnreadableImage(DataError):
    """A picture that is there but can't be decoded; names the record.

    Args:
        text: The message; or, when a data worker's error is raised again in the main process, the worker's traceback,
            of which the message is kept.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def check_images(records: Iterable[Record]) -> None:
    """See that every record's picture exists, with one listing per folder instead of one look per picture.

    Raises:
        DataError: Lists the first missing pictures, each with its record, and how many there are.
    """
    listings: dict[str, frozenset[str]] = {}
    missing: dict[str, Record] = {}
    for record in records:
        folder, name = os.path.split(record.image)
        if folder not in listings:
            listings[folder] = _names(folder)
        if name not in listings[folder]:
            missing.setdefault(record.image, record)
    if missing:
        lines = [f"{path}, named by {record.where}" for path, record in missing.items()]
        files = "1 image file is" if len(missing) == 1 else f"{len(missing)} image files are"
        raise DataError(summary(lines, head=f"{files} missing:"))


def _names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return frozenset()


class ImageFiles:
    """Reads pictures.

    Args:
        cache: Keep what was decoded, as 8-bit RGB in its own size. With data workers each worker keeps its own.
    """

    def __init__(self, cache: bool = False) -> None:
        self._cache: dict[str, np.ndarray] | None = {} if cache else None

    def read(self, path: str, where: str) -> Image.Image:
        """The picture in RGB.

        Args:
            path: Its file.
            where: The record that names it, for messages.

        Raises:
            UnreadableImage: It can't be decoded.
        """
        if self._cache is None:
            return decoded(path, path, where)
        if path not in self._cache:
            self._cache[path] = np.asarray(decoded(path, path, where))
        return Image.fromarray(self._cache[path])


def damage(path: str) -> str:
    """What is wrong with a picture's file; nothing if all of it can be decoded.

    Call it inside `whole_files_only`: the switch is the program's, so threads can't each have their own.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return "missing"
    except DAMAGED as error:
        return f"can't be read ({error})"
    return ""


@contextmanager
def whole_files_only() -> Iterator[None]:
    """Make Pillow refuse a truncated picture."""
    # LAVIS switches this on for the whole program when it is imported, and a truncated picture becomes a grey one.
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decoded(source: str | IO[bytes], name: str, where: str) -> Image.Image:
    """A picture in RGB.

    Args:
        source: Its file, or what is in it.
        name: Its path or address, for messages.
        where: What names it, for messages.

    Raises:
        UnreadableImage: It can't be decoded.
    """
    try:
        with whole_files_only(), Image.open(source) as image:
            return image.convert("RGB")
    except DAMAGED as error:
        raise UnreadableImage(f"{name}: the image can't be read ({first_line(error)}); named by {where}") from None
