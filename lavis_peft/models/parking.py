"""A vision encoder that isn't needed: its weights unread, or put away, until somebody asks it to encode a picture.

With `run.feature_cache` complete nothing asks. What is parked doesn't move with its model to another device; its names,
shapes and precisions are as ever, on the meta device where the weights can be read from a file.
"""

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from lavis_peft.errors import CheckpointError
from lavis_peft.models.vision_weights import load_weights


def watch(encoder: Any) -> None:
    """Notice when a checkpoint of the model brings weights of the encoder: its own source doesn't say them any more."""
    # Given the module, and no local function: a model is copied and pickled.
    encoder._register_load_state_dict_pre_hook(_before_loading, with_module=True)


def _before_loading(encoder: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if not prefix or not any(key.startswith(prefix) for key in state):
        return  # its own weights, or none
    if hasattr(encoder, "fingerprint"):
        raise CheckpointError("it has a vision encoder of its own, and features are read that another one computed")
    fetch(encoder, "cpu")
    encoder.source = None


def park(encoder: Any) -> None:
    """Free an encoder's memory; on a device, where there is no file to read its weights from again."""
    # Where a checkpoint says nothing of batch norms, torch makes them count 0 batches, and finds no place for that.
    warnings.filterwarnings("ignore", message=r"for visual_encoder\..*num_batches_tracked.*to a meta parameter")
    encoder.to("meta" if encoder.source is not None else "cpu")
    # Found on the instance before the class's: what moves the model leaves this part where it is.
    encoder._apply = partial(_stays, encoder)


def _stays(encoder: Any, *_: Any, **__: Any) -> Any:
    return encoder


def is_parked(encoder: nn.Module) -> bool:
    """Whether its weights must be fetched before it is run."""
    return "_apply" in vars(encoder)


def fetch(encoder: Any, device: torch.device | str) -> None:
    """Make an encoder ready to run.

    Args:
        encoder: Parked or not.
        device: Where it is to run.

    Raises:
        CheckpointError: Its weights can't be read any more.
    """
    if is_parked(encoder):
        del encoder._apply
        if any(parameter.is_meta for parameter in encoder.parameters()):
            load_weights(encoder, encoder.source)
        encoder.requires_grad_(False)
    if encoder.pos_embed.device.type != torch.device(device).type:
        encoder.to(device)
