"""Features in place of pictures, for one dataset."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lavis_peft.features.store import Store


def key_of(digest: bytes, view: int) -> bytes:
    """A feature's name in a store.

    Args:
        digest: SHA-256 of the picture's file.
        view: Number of the augmented view; 0 where the transform isn't random.
    """
    return hashlib.sha256(digest + view.to_bytes(4, "big")).digest() if view else digest


def draw_of(digest: bytes, view: int) -> str:
    """What a random transform's draws follow from."""
    return f"view-{view}-{digest.hex()}"


@dataclass
class CachedFeatures:
    """The features of a dataset's pictures.

    Args:
        store: Where they lie.
        digests: SHA-256 of each picture's file, by its path.
        views: How many there are of each.
    """

    store: Store = field(repr=False)
    digests: Mapping[str, bytes] = field(repr=False)
    views: int = 1

    def of(self, path: str, view: int) -> Tensor | None:
        """A picture's features (patches, width); None where there are none.

        Args:
            path: Its file.
            view: Any number; taken modulo the number of views.
        """
        digest = self.digests.get(os.path.abspath(path))
        return None if digest is None else self.store.read(key_of(digest, view % self.views))

    def draw(self, path: str, view: int) -> str:
        """What the draws of that view follow from."""
        digest = self.digests.get(os.path.abspath(path), os.fsencode(path))
        return draw_of(digest, view % self.views)
