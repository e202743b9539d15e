"""Checkpoints of the research code: its LoRA weights under the plugin's names.

In its Q-Former, ``lora_A`` (r, in) and ``lora_B`` (out, r) lie beside a layer's ``weight`` and add
``alpha / r · B · A`` to it, as peft's do. Its language model is wrapped by peft, which puts ``base_model.model.``
before every name. Its runner saves what trains, after scoring, when the Q-Former's LoRA is folded into the frozen
weights; these aren't in the file, and A and B are what they were.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lavis_peft.adapters.checkpoint import model_state, shortened
from lavis_peft.adapters.identity import HEADER, header
from lavis_peft.adapters.merge import adapted_layers
from lavis_peft.adapters.spec import parse_adapters
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.research.findings import Findings
from lavis_peft.research.model import ARCHS, translate_model

# The wrapper that peft's get_peft_model puts around a language model.
_WRAPPER = re.compile(r"^(t5_model|llm_model)\.base_model\.model\.")
_MATRIX = re.compile(r"\.lora_([AB])(?:\.default)?(?:\.weight)?$")
#: A constant of LLaMA's that older transformers register as a buffer, which goes into a checkpoint.
_CONSTANT = ".rotary_emb.inv_freq"
#: How far a frozen weight may be from the base it came from, in units of its greatest value: it was folded and unfolded
#: at each change between training and scoring.
_ROUNDING = 1e-3


def is_research(state: Mapping[str, Any]) -> bool:
    """Whether a model's state has the research code's names.

    Args:
        state: Names to tensors.
    """
    return any(_WRAPPER.match(key) or key.endswith((".lora_A", ".lora_B")) for key in state)


def adopted(checkpoint: Mapping[str, Any], model: nn.Module, source: str) -> Mapping[str, Any]:
    """A checkpoint in the plugin's form: translated if it is the research code's, else as it is.

    Args:
        checkpoint: What `read_checkpoint` returned.
        model: The model that is to take it, base weights loaded and adapters in.
        source: The checkpoint's name in messages.

    Raises:
        CheckpointError: A frozen weight in it is neither the model's own nor that with the LoRA folded in.
    """
    state = model_state(checkpoint, source)
    if not is_research(state):
        return checkpoint
    own = model.state_dict()
    translated = _without_bases(_renamed(state, own), own, _scaling(model), source)
    rest = {key: value for key, value in checkpoint.items() if key not in state}
    return {**rest, **_identity(checkpoint, source), "model": translated}


def _scaling(model: nn.Module) -> dict[str, float]:
    """What ``B · A`` is multiplied by in each layer with LoRA, by the layer's name."""
    return {name: layer.scaling[ADAPTER] for name, layer in adapted_layers(model).items() if hasattr(layer, "scaling")}


def _renamed(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: _MATRIX.sub(r".lora_\1.default.weight", _WRAPPER.sub(r"\1.", key)) for key in state}
    layers = {name.rpartition(".lora_A")[0] for name in names.values() if name.endswith(".lora_A.default.weight")}
    renamed = {}
    for key, name in names.items():
        layer, _, kind = name.rpartition(".")
        if layer in layers and kind in ("weight", "bias"):
            name = f"{layer}.base_layer.{kind}"
        constant = name.endswith((_CONSTANT, "position_ids"))
        if not (constant and name not in own):
            renamed[name] = state[key]
    return renamed


def _without_bases(
    state: Mapping[str, Any], own: Mapping[str, Any], scaling: Mapping[str, float], source: str
) -> dict[str, Any]:
    """The state without adapted layers' frozen weights, which are the model's own, folded or not."""
    bases = {key: value for key, value in state.items() if ".base_layer." in key and key in own}
    strange = []
    for key, found in bases.items():
        layer = key.rpartition(".base_layer.")[0]
        a, b = state.get(f"{layer}.lora_A.default.weight"), state.get(f"{layer}.lora_B.default.weight")
        plain = own[key].detach().float().cpu()
        allowed = [plain]
        if key.endswith(".weight") and a is not None and b is not None and layer in scaling:
            allowed.append(plain + scaling[layer] * (b.float() @ a.float()))
        if not any(_same(found, weight) for weight in allowed):
            strange.append(key)
    if strange:
        raise CheckpointError(
            f"{source}: {len(strange)} frozen weights are neither this model's base weights nor those with the "
            f"checkpoint's LoRA folded in: {shortened(strange)}"
        )
    return {key: value for key, value in state.items() if key not in bases}


def _same(found: Tensor, weight: Tensor) -> bool:
    if found.shape != weight.shape:
        return False
    return bool((found.float() - weight).abs().max() <= _ROUNDING * weight.abs().max().clamp_min(1e-6))


def _identity(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the config in the file says of its model, in the plugin's form; nothing where there is none."""
    config = checkpoint.get("config")
    section = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(section, Mapping) or section.get("arch") not in ARCHS:
        return {}
    translated = translate_model(section, Findings())
    family = "t5" if "t5" in translated["arch"] else "llama"
    try:
        adapters = parse_adapters(translated["adapters"], llm_family=family)
    except ConfigError as error:
        raise CheckpointError(f"{source}: the config in it: {error}") from error
    return {HEADER: header("", translated["arch"], str(section.get("model_type") or ""), adapters)}
