"""The pictures that a command line names: files, folders, patterns and addresses."""

import glob
import http.client
import os
import urllib.request
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

from lavis_peft.checks import first_line
from lavis_peft.datasets.images import UnreadableImage, decoded
from lavis_peft.errors import ConfigError

#: Endings of the files that count as pictures in a folder; a file that is named itself may end in anything.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
#: Longest that a download may take to answer, seconds, and most bytes of a picture.
TIMEOUT, MOST_BYTES = 30, 200 * 2**20


def find_pictures(named: Iterable[str]) -> list[str]:
    """The pictures that arguments stand for.

    Args:
        named: Files, folders (their pictures, by name, not those of folders in them), patterns with ``*``, ``?`` or
            ``**``, and http(s) addresses.

    Returns:
        Paths and addresses, in the arguments' order.

    Raises:
        ConfigError: With every argument that stands for no picture.
    """
    found: list[str] = []
    problems: list[str] = []
    for name in named:
        path = os.path.expanduser(name)
        if is_address(name):
            found.append(name)
        elif os.path.isdir(path):
            inside = sorted(str(each) for each in Path(path).iterdir() if each.suffix.lower() in ENDINGS)
            found += inside
            if not inside:
                problems.append(f"{name}: a folder without pictures ({', '.join(ENDINGS)})")
        elif os.path.isfile(path):
            found.append(path)
        elif matches := sorted(each for each in glob.glob(path, recursive=True) if os.path.isfile(each)):
            found += matches
        else:
            what = "matches no file" if glob.has_magic(path) else "no such file or folder"
            problems.append(f"{name}: {what}")
    if problems:
        raise ConfigError(problems)
    return found


def is_address(name: str) -> bool:
    """Whether a name is an http(s) address."""
    return urlparse(name).scheme in ("http", "https")


def open_picture(name: str, where: str = "") -> Any:
    """A picture in RGB.

    Args:
        name: A path or an http(s) address.
        where: What names it, for messages.

    Raises:
        UnreadableImage: It isn't there, can't be had or can't be decoded.
    """
    named = where or "the command line"
    if not is_address(name):
        if not os.path.isfile(name):
            raise UnreadableImage(f"{name}: no such file; named by {named}")
        return decoded(name, name, named)
    try:
        with urllib.request.urlopen(name, timeout=TIMEOUT) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise UnreadableImage(f"{name}: can't be downloaded ({first_line(error)}); named by {named}") from None
    if len(content) > MOST_BYTES:
        raise UnreadableImage(f"{name}: larger than {MOST_BYTES >> 20} MiB; named by {named}")
    return decoded(BytesIO(content), name, named)
