"""Exact parameter counts of every setting at the published sizes, from the real modules on torch's meta device.

Building a whole model for each of the settings would repeat the same work: what a part of the model trains depends on
that part's adapter alone. So each language model is built once, and each distinct adapter goes into a copy of its part.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import OmegaConf

from lavis_peft.adapters import inject
from lavis_peft.adapters.count import count
from lavis_peft.adapters.spec import parse_adapters
from lavis_peft.experiments.settings import Setting, read_paper_yaml


@dataclass(frozen=True)
class SettingCount:
    """What a setting trains, in parameters.

    Args:
        key: The setting's.
        qformer: Trained in the Q-Former: its adapters, or all of it.
        llm: Trained in the language model: its adapters.
        besides: query_tokens, ln_vision and the projection, which always train.
        qformer_total: All parameters of the Q-Former, without adapters.
        qformer_tuned_in_full: Whether ``qformer`` is all of it.
    """

    key: str
    qformer: int
    llm: int
    besides: int
    qformer_total: int
    qformer_tuned_in_full: bool

    @property
    def trained(self) -> int:
        """Everything that trains."""
        return self.qformer + self.llm + self.besides

    @property
    def full_tuning(self) -> int:
        """What full Q-Former tuning on the same language model trains, counted the same way."""
        return self.qformer_total + self.besides

    @property
    def adapters(self) -> int:
        """The adapters alone."""
        return self.llm + (0 if self.qformer_tuned_in_full else self.qformer)

    @property
    def percent_of_full_tuning(self) -> float:
        """Everything that trains, per hundred of what full Q-Former tuning trains."""
        return 100 * self.trained / self.full_tuning

    @property
    def adapters_percent_of_qformer(self) -> float:
        """The adapters alone, per hundred of the Q-Former's parameters."""
        return 100 * self.adapters / self.qformer_total

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the sums and the percentages."""
        derived = ("trained", "adapters", "full_tuning", "percent_of_full_tuning", "adapters_percent_of_qformer")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def count_settings(settings: Iterable[Setting]) -> list[SettingCount]:
    """Count what settings train; LAVIS must be registered.

    Args:
        settings: Which; taken one by one, so that a progress bar may be wrapped around them.

    Raises:
        ConfigError: The installed transformers has no LLaMA.
    """
    parts: dict[str, _Parts] = {}
    found = []
    for setting in settings:
        if setting.llm not in parts:
            parts[setting.llm] = _Parts(setting.llm)
        found.append(parts[setting.llm].count(setting))
    return found


class _Parts:
    """The parts of one language model's InstructBLIP without weights, and what was counted in copies of them."""

    def __init__(self, llm: str) -> None:
        from lavis.common.registry import registry

        from lavis_peft.runners.config import model_section

        config = OmegaConf.create({**read_paper_yaml(llm), "datasets": {}})
        self._model = registry.get_model_class(config.model.arch).on_meta(model_section(config))
        self._known: dict[str, int] = {}

    def count(self, setting: Setting) -> SettingCount:
        spec = parse_adapters(setting.adapters, llm_family=self._model.family)
        extras = self._model.extra_parts()
        return SettingCount(
            setting.key,
            qformer=self._trained("qformer", spec),
            llm=self._trained("llm", spec),
            besides=count({name: extras[name] for name in spec.train}, {}).total,
            qformer_total=count({"qformer": self._model.adapter_parts()["qformer"]}, {}).total,
            qformer_tuned_in_full=spec.qformer.mode == "full",
        )

    def _trained(self, part: str, spec: Any) -> int:
        adapter = getattr(spec, part)
        known = f"{part} {adapter.as_section()}"
        if known not in self._known:
            copied = {part: copy.deepcopy(self._model.adapter_parts()[part])}
            inject.apply(spec, copied, {"qformer": "qformer", "llm": self._model.family}, self._model.extra_parts())
            self._known[known] = count(copied, {}).trainable
        return self._known[known]
