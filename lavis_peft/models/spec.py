"""The `model` section of a run config as a typed, checked value."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from lavis_peft.adapters.spec import AdaptersSpec, parse_adapters
from lavis_peft.checks import listing, unknown_keys
from lavis_peft.errors import ConfigError
from lavis_peft.paths import tiny_dir

#: Keys of LAVIS's own model YAMLs that choose the class and its defaults; read by LAVIS, not by the model.
_LAVIS_KEYS = ("arch", "model_type")
#: How the shipped YAMLs name files of the tiny model.
_TINY = "lavis_peft:tiny/"
_PRECISIONS = ("fp16", "bf16", "fp32")


def _key(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class ModelSpec:
    """What an InstructBLIP with adapters is made of. Field names are the YAML's keys.

    ``llm`` stands for the family's own key: ``t5_model`` or ``llm_model``.
    """

    llm: str | Mapping[str, Any] = field(
        metadata={"meaning": "language model: a hub name, a local folder, or sizes (random weights)"}
    )
    adapters: AdaptersSpec = field(metadata={"meaning": "what is tuned; see the adapters table"})
    vit_model: str | Mapping[str, Any] = _key(
        "eva_clip_g", "vision encoder: eva_clip_g, a weights file of it, or sizes"
    )
    image_size: int = _key(224, "side of the square input image, pixels")
    drop_path_rate: float = _key(0.0, "stochastic depth of the vision encoder")
    use_grad_checkpoint: bool = _key(False, "gradient checkpointing in the vision encoder")
    vit_precision: str = _key("fp16", "precision of the frozen vision encoder: fp16, bf16 or fp32")
    freeze_vit: bool = _key(True, "must be true: the plugin doesn't train the vision encoder")
    num_query_token: int = _key(32, "learned query tokens of the Q-Former")
    cross_attention_freq: int = _key(2, "the Q-Former has cross-attention in every n-th layer, from the first")
    qformer: Mapping[str, Any] | None = _key(None, "sizes of the Q-Former's BERT; default: bert-base-uncased's")
    qformer_tokenizer: str = _key("bert-base-uncased", "hub name or local folder of the Q-Former's tokenizer")
    qformer_text_input: bool = _key(True, "must be true: InstructBLIP's Q-Former reads the instruction")
    llm_tokenizer: str | None = _key(None, "hub name or folder of the LLM's tokenizer; default: the LLM's own")
    llm_precision: str | None = _key(None, "fp16, bf16 or fp32; default: bf16 for T5, fp16 for LLaMA")
    llm_gradient_checkpointing: bool = _key(False, "recompute the LLM's activations in the backward pass: less memory")
    llm_load_in: str | None = _key(
        None, "8bit or 4bit: the frozen LLM quantized by bitsandbytes (GPU, extra `quantized`)"
    )
    compile_vision: bool = _key(False, "torch.compile for the frozen vision encoder")
    kernels: str = _key("fast", "fast: fused attention and the quickest products; plain: LAVIS's own steps")
    prompt: str = _key("", "prompt of generate() when a sample brings none")
    max_txt_len: int = _key(128, "longest instruction in training, tokens")
    max_output_txt_len: int = _key(256, "longest target in training, tokens")
    load_pretrained: bool = _key(True, "load the base weights named by `pretrained`")
    pretrained: str = _key("", "base weights: Q-Former, queries, ln_vision and projection under plain key names")
    load_finetuned: bool = _key(False, "load the checkpoint named by `finetuned` on top of the base weights")
    finetuned: str = _key("", "a checkpoint of this model, as a runner writes it")


def _type_problem(name: str, value: Any, default: Any, where: str) -> str | None:
    kinds: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    wanted = str if name in ("llm_tokenizer", "llm_precision", "llm_load_in") else type(default)
    if wanted not in kinds or name == "vit_model":  # which may be a name or sizes
        return None
    if isinstance(value, kinds[wanted]) and (wanted is bool or not isinstance(value, bool)):
        return None
    return f"{where}.{name}: expected {wanted.__name__}, found {value!r}"


def _number_problems(values: Mapping[str, Any], where: str) -> list[str]:
    positive = ("image_size", "num_query_token", "cross_attention_freq", "max_txt_len", "max_output_txt_len")
    return [
        f"{where}.{name}: must be at least 1, found {values[name]}"
        for name in positive
        if isinstance(values.get(name), int) and values[name] < 1
    ]


def _choice_problems(values: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    for name in ("vit_precision", "llm_precision"):
        value = values.get(name)
        if value is not None and value not in _PRECISIONS:
            problems.append(f"{where}.{name}: found {value!r}; allowed: {listing(_PRECISIONS)}")
    for name, allowed in (("kernels", ("fast", "plain")), ("llm_load_in", ("8bit", "4bit"))):
        value = values.get(name)
        if value is not None and value not in allowed:
            problems.append(f"{where}.{name}: found {value!r}; allowed: {listing(allowed)}")
    if values.get("freeze_vit") is False:
        problems.append(f"{where}.freeze_vit: false isn't supported; the vision encoder stays frozen")
    if values.get("qformer_text_input") is False:
        problems.append(f"{where}.qformer_text_input: false isn't supported; InstructBLIP's Q-Former reads the text")
    return problems


def _sized_problems(name: str, value: Any, where: str) -> list[str]:
    if (isinstance(value, Mapping) and value) or (isinstance(value, str) and value):
        return []
    return [f"{where}.{name}: expected a name, a path or a mapping of sizes, found {value!r}"]


def _finetuned_problems(values: Mapping[str, Any], where: str) -> list[str]:
    if values.get("load_finetuned") and not values.get("finetuned"):
        return [f"{where}.finetuned: empty, though {where}.load_finetuned is true; give the checkpoint's path"]
    return []


def parse_model(section: Mapping[str, Any], *, family: str, llm_key: str, where: str = "model") -> ModelSpec:
    """Check a `model` section and make it a value; nothing is loaded.

    Args:
        section: The section as plain containers, LAVIS's defaults merged in.
        family: ``t5`` or ``llama``; decides the LLM's sub-layer words.
        llm_key: The section's key for the language model, ``t5_model`` or ``llm_model``.
        where: The section's name in messages.

    Raises:
        ConfigError: With every problem found.
    """
    section = {key: _inside_package(value) for key, value in section.items()}
    # Switches of LAVIS's InstructBLIP that change what it computes in ways this plugin doesn't offer.
    unsupported = {"num_few_shot_examples": 0, "few_shot_prob": 0, "apply_lemmatizer": False}
    names = {f.name: f for f in fields(ModelSpec)}
    allowed = [*_LAVIS_KEYS, *unsupported, llm_key, *(name for name in names if name != "llm")]
    problems = unknown_keys(section, allowed, where)
    for name, neutral in unsupported.items():
        if section.get(name, neutral) not in (neutral, None):
            problems.append(f"{where}.{name}: not supported here; leave it out")
    values = {
        name: section[name] for name in names if section.get(name) is not None and name not in ("llm", "adapters")
    }
    for name, value in values.items():
        if names[name].default is not MISSING and (problem := _type_problem(name, value, names[name].default, where)):
            problems.append(problem)
    problems += _sized_problems(llm_key, section.get(llm_key), where)
    problems += _sized_problems("vit_model", section.get("vit_model", "eva_clip_g"), where)
    problems += _number_problems(values, where) + _choice_problems(values, where) + _finetuned_problems(values, where)
    adapters: AdaptersSpec | None = None
    try:
        adapters = parse_adapters(section.get("adapters"), llm_family=family, where=f"{where}.adapters")
    except ConfigError as error:
        problems += error.problems
    if problems or adapters is None:
        raise ConfigError(problems)
    values.setdefault("llm_precision", "bf16" if family == "t5" else "fp16")
    return ModelSpec(llm=section[llm_key], adapters=adapters, **values)


def _inside_package(value: Any) -> Any:
    """Paths that begin with ``lavis_peft:tiny/`` mean the tiny model's files, wherever the package is installed."""
    if isinstance(value, Mapping):
        return {key: _inside_package(inner) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(_TINY):
        return str(tiny_dir() / value.removeprefix(_TINY))
    return value


def local_folder(source: str | Mapping[str, Any]) -> Path | None:
    """The folder that a model's name points to on this machine, if it does."""
    if isinstance(source, Mapping):
        return None
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None
