"""AdaLoRA's result as plain LoRA: once its ranks are chosen there is nothing left to allocate."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.errors import ConfigError
from lavis_peft.models.incoming import Incoming


def as_lora(cls: Any, section: Mapping[str, Any], incoming: Incoming) -> Incoming:
    """What was trained of a model with every ADALORA in it written as LORA; others as they are.

    Args:
        cls: The model's class.
        section: Its `model` section.
        incoming: What was trained.

    Raises:
        ConfigError: Another part's adapter has no form as LORA, so that the two can't be converted together.
    """
    from lavis_peft.combine.candidate import Settings, adapters_of, combine, state_of
    from lavis_peft.combine.inputs import SUPPORTED, Input, prefixes, updates

    specs = (incoming.adapters.qformer, incoming.adapters.llm)
    if not any(spec.peft_type == "ADALORA" for spec in specs):
        return incoming
    if odd := [spec.peft_type or "full" for spec in specs if spec.mode != "frozen" and spec.peft_type not in SUPPORTED]:
        raise ConfigError(f"{incoming.source}: ADALORA beside {odd[0]} can't be had as LORA")
    given = Input(incoming.source, cls.arch, "", incoming.adapters, {}, incoming.state)
    model = cls.on_meta({**section, "adapters": incoming.adapters.as_dict()})
    alone = combine([updates(given, model)], Settings("cat", (1.0,)))
    adapters = adapters_of(alone, [given], cls.family)
    model = cls.on_meta({**section, "adapters": adapters.as_dict()})
    return Incoming(incoming.source, adapters, state_of(alone, prefixes(model)))
