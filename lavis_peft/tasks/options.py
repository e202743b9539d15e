"""The keys of a run config's `run` section that the tasks read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.metrics.captions import JAVA_METRICS

_OPEN_ENDED = ("error", "generate")


def _key(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How text is generated. Field names are the YAML's keys."""

    num_beams: int = _key(5, "beams when text is generated")
    max_len: int = _key(10, "longest generated answer, tokens")
    min_len: int = _key(1, "shortest generated answer, tokens")
    length_penalty: float | None = _key(
        None, "above 0 favours long texts, below 0 short ones; default, as LAVIS: T5 -1, LLaMA 0, captions 1"
    )


@dataclass(frozen=True)
class TaskOptions(GenerationOptions):
    """`multiple_choice_vqa`: besides, how questions without choices are met."""

    open_ended: str = _key("error", "questions without choices: `error`, or `generate` an answer and compare the text")


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(GenerationOptions):
    """`captioning_peft`: captions are longer, and there are scores to ask for."""

    max_len: int = _key(30, "longest caption, tokens")
    min_len: int = _key(1, "shortest caption, tokens")
    caption_metrics: tuple[str, ...] = _key((), "scores besides CIDEr, BLEU and ROUGE-L: METEOR, SPICE; both need Java")


Options = TypeVar("Options", bound=GenerationOptions)


def parse_options(run: Mapping[str, Any], kind: type[Options] = TaskOptions) -> Options:  # type: ignore[assignment]
    """Check the task's keys of the `run` section; the others are the runner's.

    Args:
        run: The section, as plain containers.
        kind: The task's options.

    Raises:
        ConfigError: With every wrong value.
    """
    values = {f.name: run[f.name] for f in fields(kind) if run.get(f.name) is not None}
    if isinstance(values.get("caption_metrics"), list):
        values["caption_metrics"] = tuple(values["caption_metrics"])
    problems = []
    if values.get("open_ended", "error") not in _OPEN_ENDED:
        problems.append(f"run.open_ended: found {values['open_ended']!r}; allowed: {', '.join(_OPEN_ENDED)}")
    counts = _count_problems(values)
    problems += counts + _penalty_problems(values.get("length_penalty")) + _metric_problems(values)
    if not counts:
        found = {key: values.get(key, getattr(kind, key)) for key in ("min_len", "max_len")}
        if found["min_len"] > found["max_len"]:
            problems.append(f"run.min_len: {found['min_len']} is more than run.max_len, {found['max_len']}")
    if problems:
        raise ConfigError(problems)
    return kind(**values)


def _count_problems(values: Mapping[str, Any]) -> list[str]:
    return [
        f"run.{key}: expected a whole number of at least 1, found {values[key]!r}"
        for key in ("num_beams", "max_len", "min_len")
        if key in values and (not isinstance(values[key], int) or isinstance(values[key], bool) or values[key] < 1)
    ]


def _penalty_problems(value: Any) -> list[str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return [] if value is None or number else [f"run.length_penalty: expected a number, found {value!r}"]


def _metric_problems(values: Mapping[str, Any]) -> list[str]:
    asked = values.get("caption_metrics", ())
    if not isinstance(asked, tuple):
        return [f"run.caption_metrics: expected a list, of {listing(JAVA_METRICS)}; found {asked!r}"]
    return [
        f"run.caption_metrics: unknown score {name!r}{suggestion(name, JAVA_METRICS)}; allowed: {listing(JAVA_METRICS)}"
        for name in asked
        if name not in JAVA_METRICS
    ]
