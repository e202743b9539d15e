"""What a run config with `run.feature_cache` must fulfil, known before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.features.spec import CacheSpec, feature_cache
from lavis_peft.features.transforms import random_steps


def cache_of(run: Any) -> CacheSpec | None:
    """The `feature_cache` of a run section; None where it isn't given, or is wrong, which the section's check says."""
    value = run.get("feature_cache")
    try:
        return (
            None
            if value is None
            else feature_cache(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
        )
    except ValueError:
        return None


def cache_problems(run: Any, model_cls: Any, foreign_runner: str | None = None) -> list[str]:
    """What is against a cache in this folder, for this model or by this runner, one sentence each.

    Args:
        run: The run section.
        model_cls: The model's class; None where it is unknown.
        foreign_runner: The runner's name where it isn't one of the plugin's, which alone read caches.
    """
    cache = cache_of(run)
    if cache is None:
        return []
    problem = cache.folder_problem()
    problems = [problem] if problem else []
    if model_cls is not None and not hasattr(model_cls, "encode_vision"):
        problems.append(f"run.feature_cache: needs a model of the plugin's, and {model_cls.__name__} isn't")
    if foreign_runner is not None:
        problems.append(
            f"run.feature_cache: {foreign_runner} knows nothing of it; use run.runner: runner_peft or runner_peft_iter"
        )
    return problems


def check_processors(cache: CacheSpec, processors: Mapping[str, Any], where: str, evaluates: bool = False) -> None:
    """See that pictures that go through these image processors have features of their own.

    Args:
        cache: The cache.
        processors: By their keys, ``train`` and ``eval``.
        where: Their section's dotted name.
        evaluates: Whether nothing is trained.

    Raises:
        ConfigError: One of them is random, and no views are kept.
    """
    used = {} if cache.augmentations else processors
    found = {key: random_steps(each) for key, each in used.items() if key != "train" or not evaluates}
    problems = [
        f"run.feature_cache: {where}.{key} is random ({', '.join(steps)}), so that a picture has no features of its "
        "own; name a processor without random steps there (blip_image_eval, peft_image), or keep several views of each "
        "picture with run.feature_cache.augmentations"
        for key, steps in found.items()
        if steps
    ]
    if problems:
        raise ConfigError(problems)
