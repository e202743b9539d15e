"""An adapter in peft's own file layout, to be loaded without this plugin.

AdaLoRA is written as plain LoRA: ``B · (E ∘ A) · alpha / ranknum`` is a product of two matrices too, and once its ranks
are chosen there is nothing left to allocate. A layer keeps its own rank, in ``rank_pattern``.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from lavis_peft.adapters.checkpoint import atomic_file, read_checkpoint, save_tensors
from lavis_peft.adapters.held import held_names
from lavis_peft.adapters.merge import adapted_layers
from lavis_peft.adapters.method import Method
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import NARROWING, PATTERNS, config_class
from lavis_peft.adapters.spec import AdapterSpec, plain
from lavis_peft.adapters.triplets import ADAPTER, Slot
from lavis_peft.errors import CheckpointError
from lavis_peft.hf.keys import qformer_to_hf

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Beside the parts' folders: what trains besides the adapters.
TRAINED = "trained.safetensors"
# In peft's files names begin below its wrapper of the model.
_PREFIX = "base_model.model."
#: What names of tensors begin with there that are no layer's.
COMMON = "base_model."

Exported = tuple[dict[str, Any], dict[str, Tensor]]
_log = logging.getLogger(__name__)


@torch.no_grad()
def exported(module: nn.Module, spec: AdapterSpec, prune: bool = False) -> Exported:
    """A part's adapter: the content of peft's two files, tensors under names below the part.

    Args:
        module: The part, with its adapter.
        spec: The adapter's spec.
        prune: Leave out AdaLoRA's triplets whose E is 0; they add nothing to the output.

    Raises:
        CheckpointError: Every triplet is 0.
    """
    if spec.peft_type == "ADALORA":
        return _as_lora(module, spec, prune)
    # Narrowing and patterns are already in the list of names.
    options = {key: plain(value) for key, value in spec.options.items() if key not in NARROWING}
    own, method = module.peft_config[ADAPTER], METHODS[str(spec.peft_type)]
    patterns = {key: dict(getattr(own, key)) for key in PATTERNS if options.get(key)}
    layers = adapted_layers(module)
    if "feedforward_modules" in method.derived:
        options["feedforward_modules"] = [name for name, layer in layers.items() if layer.is_feedforward]
    if method.caution:
        _log.warning("%s: %s", method.peft_type, method.caution)
    options |= {key: getattr(own, key) for key in method.written if hasattr(own, key)}
    config = _config(method.peft_type, list(layers), {**options, **patterns, **method.replaced})
    if not method.shared and not method.held:
        return config, get_peft_model_state_dict(module, adapter_name=ADAPTER)
    state, tensors = module.state_dict(), {}
    for name in held_names(module):
        whole = any(f".{each}.{ADAPTER}" in name for each in method.shared)
        plain_name = name.replace(f".{ADAPTER}", "")
        tensors[common_name(plain_name, method) if whole else plain_name] = state[name]
    return config, tensors


def common_name(name: str, method: Method) -> str:
    """What peft's files call a tensor that layers have in common: there it is the tuner's own, and no layer's.

    Args:
        name: Its name below one of the layers, without an adapter's.
        method: Theirs.
    """
    layer, _, _ = name.partition(next(f".{each}" for each in method.shared if f".{each}" in name))
    kind = f".{method.kind_of(layer)}" if method.kind_of else ""
    return COMMON + name[len(layer) + 1 :] + kind


def _as_lora(module: nn.Module, spec: AdapterSpec, prune: bool) -> Exported:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alpha = None
    for name, layer in adapted_layers(module).items():
        slot = Slot("", name, "", None, layer)
        a, e, b = slot.matrices
        keep = e.flatten() != 0 if prune else torch.ones(slot.rank, dtype=torch.bool, device=e.device)
        rank, alpha = int(keep.sum()), layer.lora_alpha[ADAPTER]
        if rank == 0:
            continue
        # peft's AdaLoRA divides by the rank at the start and a small constant, its LoRA by the layer's own rank.
        scale = layer.scaling[ADAPTER] / (slot.ranknum + 1e-5) * rank / alpha
        tensors[f"{name}.lora_A.weight"] = (a * e * scale)[keep]
        tensors[f"{name}.lora_B.weight"] = b[:, keep]
        ranks[name] = rank
    if not ranks:
        raise CheckpointError("every rank of the adapter is 0: it wasn't trained, so there is nothing to export")
    usual = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {name: rank for name, rank in ranks.items() if rank != usual}
    options = {"lora_alpha": alpha, "lora_dropout": spec.options.get("lora_dropout", 0.0)}
    return _config("LORA", list(ranks), {"r": usual, "rank_pattern": pattern, **options}), tensors


def _config(peft_type: str, names: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    # Only what is needed: each version of peft writes keys of its own, which older ones refuse.
    return {
        "peft_type": peft_type,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": names,
        **options,
    }


def in_hf_names(content: Exported) -> Exported:
    """A Q-Former's adapter under the names that it has in transformers' ``InstructBlipForConditionalGeneration``.

    Args:
        content: What `exported` returned of the Q-Former; a language model's names are the same in both.
    """
    config, tensors = dict(content[0]), content[1]
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = [qformer_to_hf(name) for name in config[key]]
    for key in PATTERNS:
        if config.get(key):
            config[key] = {qformer_to_hf(name): value for name, value in config[key].items()}
    method, names = METHODS[config["peft_type"]], content[0]["target_modules"]
    common = {
        common_name(f"{name}.{each}", method): common_name(f"{qformer_to_hf(name)}.{each}", method)
        for name in (names if method.kind_of else ())
        for each in method.shared
    }
    renamed = {name: name if name.startswith(COMMON) else qformer_to_hf(name) for name in tensors} | common
    return config, {renamed[name]: each for name, each in tensors.items()}


def write_adapter(content: Exported, folder: Path) -> None:
    """Write peft's two files.

    Args:
        content: What `exported` returned.
        folder: Made if need be.
    """
    config, tensors = content
    with atomic_file(folder / CONFIG) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")
    named = {
        name if name.startswith(COMMON) else _PREFIX + name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
    }
    save_tensors(named, folder / WEIGHTS)


def put_back(module: nn.Module, folder: Path) -> None:
    """Put a written adapter into a part without one, as any user of peft would.

    Args:
        module: The part, with its base weights.
        folder: A folder of `write_adapter`.
    """
    options = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kind = options.pop("peft_type")
    with warnings.catch_warnings():
        # Buffers that a method makes from the base weights are in the file for this plugin alone.
        warnings.simplefilter("ignore")
        # Up to 0.13, peft makes copies of norms float32, and what follows them in a half-precision model fails.
        whole = PeftModel(module, config_class(kind)(**options), autocast_adapter_dtype=not METHODS[kind].norms)
        set_peft_model_state_dict(whole, read_checkpoint(folder / WEIGHTS))
