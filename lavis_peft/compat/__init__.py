"""LAVIS on today's torch, torchvision, transformers and timm: one file per library, one small patch per breakage."""

import sys

from lavis_peft.compat import hooks, qformer, timm, torch, torchvision, transformers
from lavis_peft.compat.patch import Patch

__all__ = ["PATCHES", "Patch", "apply"]

# In the order in which they are tried: transformers imports torchvision.
PATCHES = (*torch.PATCHES, *torchvision.PATCHES, *transformers.PATCHES, *timm.PATCHES, *qformer.PATCHES)

_applied: list[Patch] = []


def apply() -> list[Patch]:
    """Make `import lavis` work on the installed libraries; safe to call any number of times.

    Patches to LAVIS itself are applied when the module they go on is imported.

    Returns:
        Every patch applied in this process so far, those of earlier calls included.
    """
    hooks.install(_apply_after)
    for module in {patch.after for patch in PATCHES}:
        if not module or module in sys.modules:
            _apply_after(module)
    return list(_applied)


def _apply_after(module: str) -> None:
    for patch in PATCHES:
        if patch.after == module and patch not in _applied and patch.needed():
            patch.apply()
            _applied.append(patch)
