"""Which experiment a run was, and what in it differs from the setting, from the config that it recorded."""

from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError
from lavis_peft.experiments.compose import compose, tiny_options
from lavis_peft.experiments.settings import (
    LLM_TITLES,
    Benchmark,
    Setting,
    benchmarks,
    read_paper_yaml,
    settings,
)
from lavis_peft.paths import plugin_configs_dir
from lavis_peft.runners.comparison import NEUTRAL

_BESIDES = ("query_tokens", "projection", "ln_vision")
#: Besides what makes no difference to a resumed run: the batch is compared as a whole, and seeds are averaged over.
_NEUTRAL_RUN = NEUTRAL | {
    "accum_grad_iters",
    "batch_size_eval",
    "batch_size_train",
    "seed",
    "use_dist_eval_sampler",
}
_NEUTRAL_DATA = ("build_info", "cache_images", "data_type", "type")
#: Keys whose value is a place; the same file may lie elsewhere.
_PLACES = ("model.pretrained", "model.t5_model", "model.llm_model", "model.llm_tokenizer", "model.qformer_tokenizer")


def recognise(config: Mapping[str, Any]) -> tuple[Setting, Benchmark]:
    """The experiment that a run's config describes.

    Args:
        config: The config as the run recorded it.

    Returns:
        The setting with this language model and these adapters, and the benchmark with this dataset.

    Raises:
        ConfigError: There is none.
    """
    by_builder = {benchmark.builder: benchmark for benchmark in benchmarks().values()}
    names = list(config["datasets"])
    if len(names) != 1 or names[0] not in by_builder:
        raise ConfigError(f"not an experiment of the paper: it trained on {listing(names)}")
    arch = config["model"].get("arch")
    llm = next((name for name in LLM_TITLES if _arch(name) == arch), None)
    if llm is None:
        raise ConfigError(f"not an experiment of the paper: model.arch is {arch}")
    adapters = _normal(config["model"].get("adapters") or {})
    for setting in settings().values():
        if setting.llm == llm and _normal(setting.adapters) == adapters:
            return setting, by_builder[names[0]]
    raise ConfigError("not an experiment of the paper: its adapters are those of no setting")


def changes_of(config: Mapping[str, Any], setting: Setting, benchmark: Benchmark) -> tuple[str, ...]:
    """Where a run's config differs from its experiment's, in what decides the result.

    Args:
        config: The config as the run recorded it, defaults filled in.
        setting: What `recognise` found.
        benchmark: As ``setting``.

    Returns:
        ``key: value`` of the run for each difference; the seed isn't one.
    """
    expected = _expected(setting, benchmark, str(config["model"].get("model_type")))
    meant, found = _flat(expected), _flat({name: config[name] for name in ("model", "datasets", "run")})
    changes = [
        f"{key}: {found.get(key)}"
        for key in sorted({*meant, *found})
        if not _neutral(key) and not _same(key, meant.get(key), found.get(key))
    ]
    asked = setting_model_type(setting)
    if (actual := config["model"].get("model_type")) != asked:
        changes.insert(0, f"model.model_type: {actual}")
    if (batch := _batch(config["run"])) != _batch(expected["run"]):
        changes.append(f"batch: {batch}")
    return tuple(changes)


def setting_model_type(setting: Setting) -> str:
    """The `model.model_type` of a setting's language model."""
    return read_paper_yaml(setting.llm)["model"]["model_type"]


def _expected(setting: Setting, benchmark: Benchmark, model_type: str) -> dict[str, Any]:
    """The experiment's config with defaults filled in, as a run records it.

    With another model type, that type's defaults: everything that comes with a tiny model is one change, not twenty.
    """
    composed = compose(setting, benchmark, options=tiny_options(benchmark) if model_type == "tiny" else ())
    composed.model.model_type = model_type
    folder = plugin_configs_dir()
    defaults = (
        folder / "models" / f"{composed.model.arch}_{model_type}.yaml",
        folder / "datasets" / benchmark.builder / "defaults.yaml",
    )
    found = [OmegaConf.load(path) for path in defaults if path.is_file()]
    merged = OmegaConf.to_container(OmegaConf.merge(*found, composed), resolve=True)
    return {name: merged[name] for name in ("model", "datasets", "run")} if isinstance(merged, dict) else {}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def _neutral(key: str) -> bool:
    section, name, *rest = key.split(".")
    if section == "datasets":
        return bool(rest) and rest[0] in _NEUTRAL_DATA
    if (section, name) == ("run", "feature_cache"):
        return rest != ["augmentations"]  # the same features, wherever they are kept
    # The adapters are what the experiment was recognised by, whichever way they were written.
    return (section == "run" and name in _NEUTRAL_RUN) or (section == "model" and name in ("adapters", "model_type"))


def _same(key: str, meant: Any, found: Any) -> bool:
    if key in _PLACES and isinstance(meant, str) and isinstance(found, str):
        return PurePath(meant).name == PurePath(found).name
    try:
        return float(meant) == float(found)
    except (TypeError, ValueError):
        return meant == found


def _batch(run: Mapping[str, Any]) -> int:
    """Samples per optimizer step, of all processes together."""
    processes = int(run.get("world_size") or 1) if run.get("distributed") else 1
    return int(run.get("batch_size_train") or 0) * int(run.get("accum_grad_iters") or 1) * processes


@cache
def _arch(llm: str) -> str:
    return read_paper_yaml(llm)["model"]["arch"]


def _normal(adapters: Mapping[str, Any]) -> dict[str, Any]:
    """The section with defaults filled in and without what makes no difference.

    Not by `parse_adapters`: that imports peft, which takes seconds and can do nothing for a table.
    """
    parts = {part: _normal_part(adapters.get(part, "frozen")) for part in ("qformer", "llm")}
    return {**adapters, **parts, "train": frozenset(adapters.get("train", _BESIDES))}


def _normal_part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    words = part.get("sublayers") or ()
    # No dropout is peft's default, which some write out.
    rest = {key: value for key, value in part.items() if (key, value) != ("lora_dropout", 0)}
    return {**rest, "sublayers": frozenset([words] if isinstance(words, str) else words)}
