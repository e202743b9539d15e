"""An adapter in peft's own layout as a spec and tensors of ours, wherever it was trained.

Its names may be those of LAVIS's Q-Former, of Hugging Face's, of a language model alone, or of a whole
``InstructBlipForConditionalGeneration``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.adapters.export import COMMON, CONFIG
from lavis_peft.adapters.imported_adalora import as_lora
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import PATTERNS, config_class, config_keys, tuner_prefix
from lavis_peft.adapters.spec import AdapterSpec
from lavis_peft.adapters.sublayers import allowed_words, layer_of, resolve
from lavis_peft.checks import listing, shortened
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.hf.keys import qformer_to_lavis

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPER = "base_model.model."
# What names begin with in an adapter of a whole model, newer transformers' extra level among them.
_WHOLE = {"qformer": ("model.qformer.", "qformer."), "llm": ("model.language_model.", "language_model.")}
_NARROWS = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
# What peft notes down about a file and that changes nothing in it.
_NOTES = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
    "peft_version",
    "auto_mapping",
    "runtime_config",
    "feedforward_modules",
)


@dataclass(frozen=True)
class PartAdapter:
    """What a folder holds for one part.

    Args:
        config: The content of its ``adapter_config.json``.
        tensors: Under names below the part, as the model here has them; as peft writes them, without an adapter's name.
        names: The adapted layers: the name here -> the name there, without peft's wrapper.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)


def read_folder(folder: Path) -> dict[str, PartAdapter]:
    """Read one folder of peft's.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.

    Returns:
        What it holds, by part.

    Raises:
        CheckpointError: It can't be read, or adapts something that has no place here.
    """
    config = _config(folder)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: has no {' or '.join(_WEIGHTS)}")
    found = read_checkpoint(file)
    if config["peft_type"] == "ADALORA":
        config, found = as_lora(config, found, str(folder))
    prefix = tuner_prefix(config["peft_type"])
    shared = tuple(COMMON + name for name in METHODS[config["peft_type"]].shared)
    common = {key: tensor for key, tensor in found.items() if shared and key.startswith(shared)}
    tensors: dict[str, dict[str, Tensor]] = {}
    names: dict[str, dict[str, str]] = {}
    odd = []
    for key, tensor in found.items():
        if key in common:
            continue
        plain = key.removeprefix(_WRAPPER)
        place = _placed(plain)
        if place is None:
            odd.append(plain)
            continue
        part, here = place
        tensors.setdefault(part, {})[here] = tensor
        if f".{prefix}" in here:
            layer = here[: here.index(f".{prefix}")]
            names.setdefault(part, {})[layer] = plain[: plain.index(f".{prefix}")]
    if odd:
        raise CheckpointError(
            f"{folder}: adapts what has no place in the Q-Former or the language model: {shortened(odd)}"
        )
    if not names:
        raise CheckpointError(f"{file}: has no tensor of {config['peft_type']}'s in it")
    if common and len(names) > 1:
        raise CheckpointError(
            f"{folder}: {listing(common)} are for layers of both parts, which here have such tensors of their own"
        )
    for part in names:
        tensors[part] |= common
    return {part: PartAdapter(config, own, names.get(part, {})) for part, own in tensors.items()}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); give a folder that peft wrote") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in METHODS:
        raise CheckpointError(f"{path}: peft_type {kind!r} isn't supported; supported: {listing(METHODS)}")
    return config


def _placed(name: str) -> tuple[str, str] | None:
    """The part that a tensor belongs to, and its name below it here."""
    for part, starts in _WHOLE.items():
        for start in starts:
            if name.startswith(start):
                inside = name.removeprefix(start)
                return part, qformer_to_lavis(inside) if part == "qformer" else inside
    if name.startswith(("encoder.layer.", "embeddings.")):  # the latter with `bias: all`
        return "qformer", qformer_to_lavis(name)
    if re.match(r"(?:encoder|decoder)\.(?:block|final_layer_norm)\.|model\.(?:layers|norm)\.|lm_head\.|shared\.", name):
        return "llm", name
    return None


def spec_of(adapter: PartAdapter, module: nn.Module, family: str, where: str) -> AdapterSpec:
    """The settings of an adapter, its layers named one by one or by the paper's words where these say the same.

    Args:
        adapter: The adapter.
        module: The part, without an adapter; on the meta device it is enough.
        family: ``qformer``, ``t5`` or ``llama``.
        where: The folder, for messages.

    Raises:
        ConfigError: It has settings that can't be kept here; all are named.
    """
    kind, config = str(adapter.config["peft_type"]), adapter.config
    own, problems = {}, []
    defaults = {item.name: item.default for item in fields(config_class(kind))}
    for key, value in config.items():
        empty = value is None or value is False or value in ([], {}, "")  # 0 isn't: it may be a choice
        if empty or key in (*_NOTES, *_NARROWS, *PATTERNS) or value == defaults.get(key):
            continue
        if key in METHODS[kind].replaced and value == METHODS[kind].replaced[key]:
            continue
        if key not in config_keys(kind):
            reason = METHODS[kind].refused.get(key, "the installed peft doesn't know it")
            problems.append(f"{where}: {key}: {value!r} can't be kept: {reason}")
        else:
            own[key] = value
    # Settings that differ from their default and are empty or false count too.
    own |= {k: False for k in config_keys(kind) if config.get(k) is False and defaults[k] is True}
    own |= {key: exact for key in PATTERNS if (exact := _exact(config.get(key), adapter.names))}
    missing = [name for name in adapter.names if name not in dict(module.named_modules())]
    if missing:
        problems.append(f"{where}: the model has no layers {shortened(missing)}")
    problems += _feed_forward_problems(adapter, kind, where)
    if problems:
        raise ConfigError(problems)
    return AdapterSpec("adapter", kind, options=own, **_targets(adapter.names, module, family, METHODS[kind].norms))


def _exact(pattern: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any]:
    """A pattern with its expressions written out for each layer, by the layer's name here."""
    found = {}
    for here, there in names.items():
        key = next((key for key in pattern or {} if re.match(rf"(.*\.)?({key})$", there)), None)
        if key is not None:
            found[_escaped(here)] = (pattern or {})[key]
    return found


def _feed_forward_problems(adapter: PartAdapter, kind: str, where: str) -> list[str]:
    derive = METHODS[kind].derived.get("feedforward_modules")
    if derive is None:
        return []
    given = adapter.config.get("feedforward_modules") or []

    def scaled_in(name: str, patterns: str | Sequence[str]) -> bool:
        if isinstance(patterns, str):
            return re.fullmatch(patterns, name) is not None
        return any(name == each or name.endswith(f".{each}") for each in patterns)

    ours: Any = derive(list(adapter.names))
    other = [here for here, there in adapter.names.items() if scaled_in(here, ours) != scaled_in(there, given)]
    if not other:
        return []
    return [
        f"{where}: feedforward_modules: {given!r} isn't just the layers that lead out of a feed-forward network; "
        f"it differs in {shortened(other)}"
    ]


def _targets(names: Mapping[str, str], module: nn.Module, family: str, norms: bool) -> dict[str, Any]:
    words, left = [], set(names)
    for word in allowed_words(family, norms):
        try:
            covered = set(resolve(module, family, [word], norms)[word])
        except ConfigError:
            continue  # the model has no such layer
        if covered <= left:
            words.append(word)
            left -= covered
    if not left:
        return {"sublayers": tuple(words)}
    ordered = sorted(names, key=lambda name: (layer_of(family, name) or 0, name))
    return {"target_modules": "|".join(_escaped(name) for name in ordered)}


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")
