"""torch under the names of 2023."""

import warnings

import torch

from lavis_peft.compat.patch import Patch

_OLD_NAMES = r"`torch\.(cuda\.amp\.|utils\._pytree\._register_pytree_node)"

DEPRECATED = Patch(
    name="torch.cuda.amp",
    broke="a warning for each use: LAVIS, fairscale and transformers 4 call torch.cuda.amp and torch.utils._pytree",
    since="torch 2.4",
    needed=lambda: hasattr(torch.amp, "custom_fwd"),
    apply=lambda: warnings.filterwarnings("ignore", _OLD_NAMES, FutureWarning),
)

PATCHES = (DEPRECATED,)
