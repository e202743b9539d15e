"""An AdaLoRA adapter as peft saves it, read as the LoRA that it is.

peft's file has A, E and B of each layer, those of the ranks that are left once they were chosen, and nothing of the
budget; there is nothing left to allocate then. A layer computes ``B · (E ∘ A) · alpha / init_r``, whatever rank it has.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError

# What only AdaLoRA has, and what it has from LoRA's config and doesn't read.
_OWN = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
_UNREAD = ("r", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
# peft adds it to the number of ranks that it divides by.
_EPSILON = 1e-5


def as_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same function as plain LoRA.

    Args:
        config: The content of ``adapter_config.json``.
        tensors: The file's tensors, by their names in it.
        where: The folder, for messages.

    Returns:
        The config and the tensors of a LoRA adapter. A layer that has lost all its ranks isn't in it.

    Raises:
        CheckpointError: A layer's matrices don't fit one another, or no layer has a rank left.
    """
    initial = config.get("init_r")
    alpha = config.get("lora_alpha")
    if not isinstance(initial, int) or initial < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{where}: init_r {initial!r} and lora_alpha {alpha!r} are no numbers to scale by")
    layers = [name.removesuffix(".lora_E") for name in tensors if name.endswith(".lora_E")]
    own = {f"{layer}.lora_{each}" for layer in layers for each in "AEB"}
    lora = {name: tensor for name, tensor in tensors.items() if name not in own}
    ranks: dict[str, int] = {}
    odd = []
    for layer in layers:
        found = [tensors[key] for each in "AEB" if (key := f"{layer}.lora_{each}") in tensors]
        if len(found) < 3 or any(matrix.dim() != 2 for matrix in found):
            odd.append(layer)
            continue
        a, e, b = found
        rank = e.shape[0]
        if a.shape[0] != rank or b.shape[1] != rank or e.shape[1] != 1:
            odd.append(layer)
        elif rank:
            # LoRA divides by the layer's own rank. An alpha of 0 or less stands for the number of ranks at the start.
            scale = (alpha if alpha > 0 else initial) / (initial + _EPSILON) * rank / _positive(alpha)
            lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"] = a.float() * e.float() * scale, b.float()
            ranks[layer] = rank
    if odd:
        raise CheckpointError(f"{where}: lora_A, lora_E and lora_B don't fit one another in {shortened(odd)}")
    if not ranks:
        raise CheckpointError(f"{where}: no layer has a rank left; there is nothing to import")
    usual = Counter(ranks.values()).most_common(1)[0][0]
    kept = {key: value for key, value in config.items() if key not in (*_OWN, *_UNREAD)}
    pattern = {layer.removeprefix("base_model.model."): rank for layer, rank in ranks.items() if rank != usual}
    settings = {"peft_type": "LORA", "r": usual, "lora_alpha": _positive(alpha), "rank_pattern": pattern}
    return {**kept, **settings}, lora


def _positive(alpha: float) -> float:
    return alpha if alpha > 0 else 1
