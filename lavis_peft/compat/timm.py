"""timm under the module paths of 2021."""

import importlib.util
import warnings

from lavis_peft.compat.patch import Patch

MOVED = Patch(
    name="timm.models",
    broke="four warnings at each start: LAVIS imports timm.models.layers, .helpers, .hub and .registry, which moved",
    since="timm 0.9",
    needed=lambda: importlib.util.find_spec("timm.layers") is not None,
    apply=lambda: warnings.filterwarnings("ignore", "Importing from timm.models", FutureWarning),
)

PATCHES = (MOVED,)
