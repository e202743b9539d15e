"""torchvision without its compiled operators."""

import importlib
import sys

import torch

from lavis_peft.compat.patch import Patch

# LAVIS calls none of these; torchvision only registers shape functions for them while it is imported.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A Library takes its declarations back when it is collected, so it must live as long as the process.
_declared: list[torch.library.Library] = []


def _import_fails() -> bool:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        return True
    return False


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    # The failed import left its finished submodules behind; a half-initialised package is worse than a second start.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    importlib.import_module("torchvision")


OPERATORS = Patch(
    name="torchvision.operators",
    broke="`import torchvision` ends in `operator torchvision::nms does not exist` if its compiled part doesn't load",
    since="torchvision 0.20, with a wheel built for another torch (a CUDA wheel over a CPU torch)",
    needed=_import_fails,
    apply=_declare_operators,
)

PATCHES = (OPERATORS,)
