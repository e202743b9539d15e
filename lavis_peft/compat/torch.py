"""torch under the names of 2023."""

import functools
import io
import os
import pickle
import warnings
from pathlib import PurePosixPath
from typing import Any

import torch

from lavis_peft.compat.patch import Patch

_OLD_NAMES = r"`torch\.(cuda\.amp\.|utils\._pytree\._register_pytree_node)"
#: By this variable a user of a newer torch asks for its old ways.
_AS_BEFORE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

DEPRECATED = Patch(
    name="torch.cuda.amp",
    broke="a warning for each use: LAVIS, fairscale and transformers 4 call torch.cuda.amp and torch.utils._pytree",
    since="torch 2.4",
    needed=lambda: hasattr(torch.amp, "custom_fwd"),
    apply=lambda: warnings.filterwarnings("ignore", _OLD_NAMES, FutureWarning),
)


def _runs_code() -> bool:
    """Whether ``torch.load`` unpickles anything unless it is told not to; tried with a class that is harmless."""
    if os.environ.get(_AS_BEFORE):
        return False
    buffer = io.BytesIO()
    torch.save(PurePosixPath("harmless"), buffer)
    buffer.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(buffer)
    except pickle.UnpicklingError:
        return False
    return True


def _load_data_only() -> None:
    load_anything = torch.load

    @functools.wraps(load_anything)
    def load(
        f: Any, map_location: Any = None, pickle_module: Any = None, *, weights_only: bool | None = None, **more: Any
    ) -> Any:
        if weights_only is None:
            weights_only = pickle_module is None  # as torch 2.6 decides
        return load_anything(f, map_location, pickle_module, weights_only=weights_only, **more)

    torch.load = torch.serialization.load = load


DATA_ONLY = Patch(
    name="torch.load",
    broke="a checkpoint that LAVIS or transformers reads can run code: neither passes weights_only=True",
    since="before torch 2.6, which made that the default",
    needed=_runs_code,
    apply=_load_data_only,
)

PATCHES = (DEPRECATED, DATA_ONLY)
