"""The research code's `model` section: six model classes there are one class with `adapters` here.

In all of them the query tokens, ln_vision and the projection train and the vision encoder doesn't, as by default here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavis_peft.adapters.values import Check, flag, one_of, positive_int, positive_number, probability
from lavis_peft.checks import listing, suggestion
from lavis_peft.research.findings import Findings


@dataclass(frozen=True)
class Arch:
    """What one of its model names means.

    Args:
        ours: The plugin's model.
        qformer: The Q-Former has LoRA and is frozen otherwise; if not, all of it trains.
        llm: The language model has LoRA; if not, it is frozen.
    """

    ours: str
    qformer: bool
    llm: bool


ARCHS: dict[str, Arch] = {
    f"blip2_{family}_instruct_{kind}": Arch(f"blip2_{family}_instruct_peft", "qformer" in kind, kind != "qformer_lora")
    for family in ("t5", "vicuna")
    for kind in ("lora", "qformer_lora", "qformer_llm_lora")
}

#: Its switches of the Q-Former's sub-layers, and the words they stand for.
SWITCHES = {
    "self_attention_qv_lora": "self_attention",
    "self_attention_output_lora": "self_attention.output",
    "qformer_crossattention_lora_q": "cross_attention.query",
    "qformer_crossattention_lora_k": "cross_attention.key",
    "qformer_crossattention_lora_v": "cross_attention.value",
    "qformer_crossattention_lora_o": "cross_attention.output",
    "ffn_lora": "ffn",
}
_CROSS = tuple(word for word in SWITCHES.values() if word.startswith("cross_attention."))
_APPLY = {"attn": ["attention"], "ffn": ["ffn"], "all": ["attention", "ffn"]}
#: Fixed in its code.
_LLM_ALPHA = 8

# Key -> the value that a config without it gets, and what is allowed.
_QFORMER_KEYS: dict[str, tuple[object, Check]] = {
    "lora_r": (8, positive_int),
    "lora_alpha": (16, positive_number),
    "lora_dropout": (0.05, probability),
    **dict.fromkeys(SWITCHES, (False, flag)),
}
_LLM_KEYS: dict[str, tuple[object, Check]] = {
    "llm_lora_r": (8, positive_int),
    "llm_lora_apply": ("attn", one_of(*_APPLY)),
}
_FEW_SHOT = ("num_few_shot_examples", "few_shot_prob")

#: What the plugin's own `model` section may have besides `adapters`; the model checks the values.
OWN_KEYS = (
    *("arch", "model_type", "vit_model", "image_size", "drop_path_rate", "use_grad_checkpoint", "vit_precision"),
    *("freeze_vit", "num_query_token", "cross_attention_freq", "qformer", "qformer_tokenizer", "qformer_text_input"),
    *("t5_model", "llm_model", "llm_tokenizer", "llm_precision", "llm_gradient_checkpointing", "llm_load_in"),
    *("compile_vision", "kernels", "prompt", "max_txt_len", "max_output_txt_len"),
    *("load_pretrained", "pretrained", "load_finetuned", "finetuned", "apply_lemmatizer", *_FEW_SHOT),
)

#: Its defaults that differ from LAVIS's, which are the plugin's: the checkpoint is of Vicuna 1.1, it ran on 1.3.
_LANGUAGE_MODELS = {("blip2_vicuna_instruct_peft", "vicuna7b"): ("llm_model", "lmsys/vicuna-7b-v1.3")}


def translate_model(old: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    """The section in the plugin's form.

    Args:
        old: A `model` section whose `arch` is in `ARCHS`.
        found: Gets what there is to say.
    """
    arch = ARCHS[old["arch"]]
    adapters = {"qformer": _qformer(old, arch, found), "llm": _llm(old, arch, found)}
    section: dict[str, Any] = {"arch": arch.ours, "model_type": old.get("model_type"), "adapters": adapters}
    found.notes.insert(0, f"model.arch: {old['arch']} is {arch.ours} with model.adapters")
    idle = _idle(arch)
    for key, value in old.items():
        if key in section or key in _read_keys(arch):
            continue
        if key in idle:
            found.dropped.append(f"model.{key} ({idle[key]})")
        elif key in OWN_KEYS:
            section[key] = value
        else:
            allowed = [name for name in (*_read_keys(arch), *OWN_KEYS) if name not in idle]
            found.problems.append(f"model.{key}: unknown key{suggestion(key, allowed)}; allowed: {listing(allowed)}")
    if "adapters" in old:
        found.problems.append(
            f"model.adapters: belongs to {arch.ours}; with {old['arch']}, adapters are set by its own keys"
        )
    _add_language_model(section, found)
    return section


def _read_keys(arch: Arch) -> tuple[str, ...]:
    return (*(_QFORMER_KEYS if arch.qformer else ()), *(_LLM_KEYS if arch.llm else ()))


def _idle(arch: Arch) -> dict[str, str]:
    """The keys that its class doesn't read, and why."""
    idle = {} if arch.qformer else dict.fromkeys(_QFORMER_KEYS, "its Q-Former has no LoRA, all of it trains")
    idle |= {} if arch.llm else dict.fromkeys(_LLM_KEYS, "its language model has no LoRA")
    if "vicuna" in arch.ours:
        idle |= dict.fromkeys(_FEW_SHOT, "only its T5 has few-shot training")
    return idle


def _values(old: Mapping[str, Any], keys: Mapping[str, tuple[object, Check]], found: Findings) -> dict[str, Any]:
    values = {}
    for key, (default, check) in keys.items():
        values[key] = old.get(key, default)
        if allowed := check(values[key]):
            found.problems.append(f"model.{key}: found {values[key]!r}; give {allowed}")
            values[key] = default
        elif key not in old and key not in SWITCHES:
            found.notes.append(f"model.{key}: not set; {default} is its code's default")
    return values


def _qformer(old: Mapping[str, Any], arch: Arch, found: Findings) -> Any:
    if not arch.qformer:
        return "full"
    values = _values(old, _QFORMER_KEYS, found)
    words = [word for key, word in SWITCHES.items() if values[key]]
    if set(_CROSS) <= set(words):
        words = ["cross_attention" if word == _CROSS[0] else word for word in words if word not in _CROSS[1:]]
    if not words:
        found.notes.append("model.adapters.qformer: no sub-layer is switched on, so nothing in the Q-Former trains")
        return "frozen"
    return {
        "peft_type": "LORA",
        "sublayers": words,
        "r": values["lora_r"],
        "lora_alpha": values["lora_alpha"],
        "lora_dropout": values["lora_dropout"],
    }


def _llm(old: Mapping[str, Any], arch: Arch, found: Findings) -> Any:
    if not arch.llm:
        return "frozen"
    values = _values(old, _LLM_KEYS, found)
    sublayers = list(_APPLY[values["llm_lora_apply"]])
    return {"peft_type": "LORA", "sublayers": sublayers, "r": values["llm_lora_r"], "lora_alpha": _LLM_ALPHA}


def _add_language_model(section: dict[str, Any], found: Findings) -> None:
    key, name = _LANGUAGE_MODELS.get((section["arch"], str(section["model_type"])), (None, None))
    if key is not None and key not in section:
        section[key] = name
        found.notes.append(f"model.{key}: not set; {name} is its code's default")
