"""The settings of the tiny base's training: what `config.yaml` may say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lavis_peft.checks import unknown_keys
from lavis_peft.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """How long and how fast one stage trains.

    Args:
        steps: Optimizer steps.
        batch: Pictures or instructions in a step.
        lr: Peak learning rate; it warms up linearly and falls along a cosine.
        warmup: Steps of warm-up.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100


@dataclass(frozen=True)
class Settings:
    """All settings; the names are the YAML's keys.

    Args:
        seed: Decides every picture, instruction and initial weight.
        width: Width of the vision encoder, the Q-Former and the language models.
        heads: Attention heads of each.
        feed_forward: Width of their feed-forward layers.
        vision_depth: Transformer blocks of the vision encoder.
        qformer_layers: Layers of the Q-Former; every second has cross-attention.
        queries: Query tokens.
        llm_layers: Layers of the LLaMA, and of each of the T5's two stacks.
        pictures: Pictures drawn once for the instruction stages.
        vision: The vision encoder's stage.
        t5: The instruction stage with the T5.
        llama: The instruction stage with the LLaMA.
    """

    seed: int = 7
    width: int = 96
    heads: int = 4
    feed_forward: int = 192
    vision_depth: int = 2
    qformer_layers: int = 4
    queries: int = 8
    llm_layers: int = 2
    pictures: int = 40_000
    vision: Stage = field(default_factory=lambda: Stage(steps=3600, batch=96, lr=3e-3))
    t5: Stage = field(default_factory=lambda: Stage(steps=2400, batch=128, lr=2e-3))
    llama: Stage = field(default_factory=lambda: Stage(steps=1600, batch=128, lr=2e-3))

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read a YAML file; keys that are left out keep their default.

        Raises:
            ConfigError: Every unknown key and wrong value.
        """
        values = yaml.safe_load(path.read_text()) or {}
        if not isinstance(values, Mapping):
            raise ConfigError("expected a mapping", where=str(path))
        problems = unknown_keys(values, [item.name for item in fields(cls)], "settings")
        parsed: dict[str, Any] = {}
        for key, value in values.items():
            if key in ("vision", "t5", "llama") and isinstance(value, Mapping):
                stage = asdict(getattr(cls(), key)) | dict(value)
                problems += unknown_keys(stage, [item.name for item in fields(Stage)], f"settings.{key}")
                problems += _not_positive(stage, f"settings.{key}.")
                parsed[key] = Stage(**{item.name: stage[item.name] for item in fields(Stage)})
            else:
                parsed[key] = value
        problems += _not_positive({k: v for k, v in parsed.items() if not isinstance(v, Stage)}, "settings.")
        if problems:
            raise ConfigError(problems, where=str(path))
        return cls(**parsed)


def _not_positive(values: Mapping[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{key}: {value!r}; a number above 0 is needed"
        for key, value in values.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0
    ]
