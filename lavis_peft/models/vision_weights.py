"""The vision encoder's weights: which file they are in, and reading them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.adapters.placing import taken_over
from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError

_EVA_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
# EVA-CLIP g/14 has 40 blocks and a classification head; BLIP-2 reads the output of block 39, so these keys of the
# file have no place in the model. Any other key that doesn't fit is an error.
_EVA_UNUSED = ("blocks.39.", "norm.", "fc_norm.", "head.", "mask_token")


def load_weights(encoder: Any, weights: str) -> None:
    """Read an encoder's weights into it; it may be on the meta device.

    Args:
        encoder: The encoder, its precision set.
        weights: As in `VisionSpec`.

    Raises:
        CheckpointError: They can't be read or belong to another model.
    """
    from lavis.models.eva_vit import interpolate_pos_embed

    tensors = _read(weights)
    foreign = [key for key in tensors if not key.startswith(_EVA_UNUSED)]
    tensors = {key: value for key, value in tensors.items() if key in encoder.state_dict()}
    foreign = [key for key in foreign if key not in tensors]
    missing = [key for key in encoder.state_dict() if key not in tensors]
    if foreign or missing:
        raise CheckpointError(
            f"{weights}: not the weights of this vision encoder; "
            f"missing: {_listed(missing)}; foreign: {_listed(foreign)}"
        )
    interpolate_pos_embed(encoder, tensors)
    try:
        encoder.load_state_dict(taken_over(tensors, encoder.state_dict()), strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{weights}: not the weights of this vision encoder; {error}") from error


def weights_file(weights: str) -> Path:
    """The file that `VisionSpec.weights` stands for; LAVIS's download for ``eva_clip_g``."""
    if weights != "eva_clip_g":
        return Path(weights).expanduser()
    from lavis.common.dist_utils import download_cached_file

    return Path(download_cached_file(_EVA_URL, check_hash=False, progress=True))


def _read(weights: str) -> dict[str, Tensor]:
    path = weights_file(weights)
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: can't be read as model weights ({error})") from error


def _listed(keys: list[str]) -> str:
    return shortened(keys, shown=8) or "none"
