"""LAVIS's Q-Former, written for the `PreTrainedModel` of transformers 4.15, on later versions of it.

These patches go on LAVIS's own classes, not on transformers' `PreTrainedModel`: no other model sees them.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

import torch

from lavis_peft.compat.patch import Patch

_MODULE = "lavis.models.blip2_models.Qformer"


def _qformer() -> ModuleType:
    return importlib.import_module(_MODULE)


def _host() -> Any:
    return importlib.import_module("transformers.modeling_utils").PreTrainedModel


def invert_attention_mask(self: Any, encoder_attention_mask: torch.Tensor) -> torch.Tensor:
    """A mask to add to attention scores: 0 where `encoder_attention_mask` is 1, the lowest number where it is 0.

    Args:
        encoder_attention_mask: (B, K) or (B, Q, K), ones and zeros; K encoder positions, Q query positions.

    Returns:
        (B, 1, 1, K) or (B, 1, Q, K), in the model's dtype.
    """
    mask = encoder_attention_mask[:, None]
    if mask.dim() == 3:
        mask = mask[:, None]
    return (1.0 - mask.to(self.dtype)) * torch.finfo(self.dtype).min


def get_head_mask(self: Any, head_mask: torch.Tensor | None, num_hidden_layers: int) -> Any:
    """One mask per layer that broadcasts over attention scores (B, H, Q, K), or None for each layer.

    Args:
        head_mask: (H,) for all layers or (L, H) for each; 1 keeps a head, 0 silences it; None keeps all.
        num_hidden_layers: L.
    """
    if head_mask is None:
        return [None] * num_hidden_layers
    return head_mask.to(self.dtype).expand(num_hidden_layers, -1)[:, None, :, None, None]  # (L, 1, H, 1, 1)


_MASK_HELPERS = (invert_attention_mask, get_head_mask)


def _add_mask_helpers() -> None:
    for function in _MASK_HELPERS:
        if not hasattr(_host(), function.__name__):
            setattr(_qformer().BertPreTrainedModel, function.__name__, function)


MASK_HELPERS = Patch(
    name="lavis.qformer.masks",
    broke="the forward calls get_head_mask and invert_attention_mask, which PreTrainedModel no longer has",
    since="transformers 5",
    needed=lambda: any(not hasattr(_host(), function.__name__) for function in _MASK_HELPERS),
    apply=_add_mask_helpers,
    after=_MODULE,
)


def _init_weights_at_end(self: Any) -> None:
    # LAVIS ends its constructors with init_weights(), as models did before post_init() existed; post_init() builds the
    # table of tied weights that init_weights() now reads, and then calls init_weights() itself.
    if "all_tied_weights_keys" in vars(self):
        _host().init_weights(self)
    else:
        self.post_init()


# Older versions found both pairs by themselves, through get_output_embeddings() and the shared parameter.
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def _mend_tying() -> None:
    module = _qformer()
    module.BertPreTrainedModel.init_weights = _init_weights_at_end
    for cls in (module.BertLMHeadModel, module.BertForMaskedLM):
        cls._tied_weights_keys = dict(_TIED)


TYING = Patch(
    name="lavis.qformer.init_weights",
    broke="building the Q-Former ends in `no attribute 'all_tied_weights_keys'`, and nothing names its tied weights",
    since="transformers 5",
    needed=lambda: hasattr(_host(), "get_expanded_tied_weights_keys"),
    apply=_mend_tying,
    after=_MODULE,
)


def _mend_position_ids() -> None:
    module = _qformer()
    original = module.BertPreTrainedModel._init_weights

    def _init_weights(self: Any, part: torch.nn.Module) -> None:
        original(self, part)
        if isinstance(part, module.BertEmbeddings):
            part.position_ids.copy_(torch.arange(part.position_ids.shape[-1]))

    module.BertPreTrainedModel._init_weights = _init_weights


# Whether from_pretrained() starts on the meta device can't be asked for; it came with the table of tied weights.
POSITION_IDS = Patch(
    name="lavis.qformer.position_ids",
    broke="from_pretrained() leaves uninitialised memory in the buffer position_ids, which BERT's files no longer hold",
    since="transformers 5, which builds every model on the meta device",
    needed=TYING.needed,
    apply=_mend_position_ids,
    after=_MODULE,
)


def _mend_resizing() -> None:
    def resize_token_embeddings(self: Any, new_num_tokens: int | None = None, **kwargs: Any) -> torch.nn.Embedding:
        kwargs.setdefault("mean_resizing", False)
        return _host().resize_token_embeddings(self, new_num_tokens, **kwargs)

    _qformer().BertPreTrainedModel.resize_token_embeddings = resize_token_embeddings


RESIZING = Patch(
    name="lavis.qformer.resize_token_embeddings",
    broke="new rows are drawn from the old ones' covariance: slow, not what LAVIS trained with, impossible on meta",
    since="transformers 4.46",
    needed=lambda: "mean_resizing" in inspect.signature(_host().resize_token_embeddings).parameters,
    apply=_mend_resizing,
    after=_MODULE,
)

PATCHES = (MASK_HELPERS, TYING, POSITION_IDS, RESIZING)
