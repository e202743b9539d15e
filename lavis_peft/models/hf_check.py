"""What a directory for transformers computes, compared with the model it was made of."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_peft.errors import VerificationFailed
from lavis_peft.models.base import Blip2InstructPeft

_PROMPTS = ("Question: what is in the picture? Short answer:", "yes or no", "what color is it?", "a short description")
#: How far the visual prefix and the language model's logits may move, in units of their greatest value. In float32
#: it is ln_vision's epsilon, which is 1e-5 in LAVIS and 1e-6 in transformers.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}


@torch.no_grad()
def compare_hf(model: Blip2InstructPeft, folder: Path, dtype: str | None) -> dict[str, float]:
    """See that transformers' own classes compute from a directory what a model computes; both in float32.

    Args:
        model: The model, adapters and all; it is converted to float32.
        folder: The directory.
        dtype: The precision that it was written in; None where weights kept their own.

    Returns:
        ``difference`` of the logits, ``prefix_difference`` of the visual prefix, and what was allowed, ``tolerance``
        and ``prefix_tolerance``.

    Raises:
        VerificationFailed: They are too far apart, or the tokenizers don't give the same tokens.
    """
    from transformers import InstructBlipForConditionalGeneration

    model.float()
    hf = InstructBlipForConditionalGeneration.from_pretrained(str(folder), torch_dtype=torch.float32).eval()
    size = model.spec.image_size
    image = torch.randn(len(_PROMPTS), 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, _ = model.encode_images(image, list(_PROMPTS))
    words = _same_tokens(model, folder)
    prefix = _apart(ours, _prefix(hf, image, words["qformer"]))
    logits = _apart(_logits(model.llm, ours, words["llm"]), _logits(hf.language_model, ours, words["llm"]))
    allowed = max(_TOLERANCE[kind] for kind in (dtype or "fp32", str(model.spec.llm_precision)))
    least = _TOLERANCE[dtype or "fp32"]
    if not (prefix <= least and logits <= allowed):
        raise VerificationFailed(
            f"transformers computes something else from the files: the visual prefix differs by {prefix:.2e} of its "
            f"size (allowed {least:.0e}), the logits by {logits:.2e} (allowed {allowed:.0e}); nothing was written"
            + _in_half(dtype)
        )
    return {
        "difference": logits,
        "tolerance": allowed,
        "prefix_difference": prefix,
        "prefix_tolerance": least,
    }


def _in_half(dtype: str | None) -> str:
    return "" if dtype in (None, "fp32") else f"; rounding to {dtype} may be all, which --verify layers doesn't compare"


def _same_tokens(model: Any, folder: Path) -> dict[str, Any]:
    """Token ids and masks of the prompts, by the written tokenizers, which must be those of ours."""
    from transformers import AutoTokenizer

    found = {"llm": AutoTokenizer.from_pretrained(str(folder))}
    found["qformer"] = AutoTokenizer.from_pretrained(str(folder), subfolder="qformer_tokenizer")
    ours = {"llm": model.t5_tokenizer if model.family == "t5" else model.llm_tokenizer, "qformer": model.tokenizer}
    words = {}
    for name, tokenizer in found.items():
        ours[name].padding_side = tokenizer.padding_side
        words[name], expected = (
            each(list(_PROMPTS), padding="longest", return_tensors="pt") for each in (tokenizer, ours[name])
        )
        if not torch.equal(words[name].input_ids, expected.input_ids):
            raise VerificationFailed(
                f"the written tokenizer ({name}) gives other tokens than LAVIS's: {words[name].input_ids[0].tolist()}, "
                f"not {expected.input_ids[0].tolist()}; nothing was written"
            )
    return words


def _prefix(hf: Any, image: Tensor, words: Any) -> Tensor:
    """The visual prefix (B, Q, D), step by step: the call that gives it has another name in each version."""
    features = hf.vision_model(image, return_dict=True).last_hidden_state
    queries = hf.query_tokens.expand(image.shape[0], -1, -1)
    mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), words.attention_mask], dim=1)
    output = hf.qformer(
        input_ids=words.input_ids,
        attention_mask=mask,
        query_embeds=queries,
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long),
        return_dict=True,
    )
    return hf.language_projection(output.last_hidden_state[:, : queries.shape[1]])


def _logits(llm: Any, prefix: Tensor, words: Any) -> Tensor:
    embeds = torch.cat([prefix, llm.get_input_embeddings()(words.input_ids)], dim=1)
    mask = torch.cat([torch.ones(prefix.shape[:2], dtype=torch.long), words.attention_mask], dim=1)
    start = {"decoder_input_ids": torch.zeros(len(prefix), 1, dtype=torch.long)}
    given = start if llm.config.is_encoder_decoder else {}
    return llm(inputs_embeds=embeds, attention_mask=mask, **given).logits[:, -1]


def _apart(first: Tensor, second: Tensor) -> float:
    width = min(first.shape[-1], second.shape[-1])  # rows for added tokens may be there in one alone
    first, second = first[..., :width], second[..., :width]
    return float((first - second).abs().max() / first.abs().max())
