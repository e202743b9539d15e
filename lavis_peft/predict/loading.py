"""The model that is asked, and how its run config writes questions. This module imports LAVIS."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from omegaconf import OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.incoming import loaded, read_incoming
from lavis_peft.predict.asking import Generation
from lavis_peft.predict.questions import Style
from lavis_peft.runners.config import check_config, dataset_sections, model_section
from lavis_peft.runners.config_file import read_run_file
from lavis_peft.runners.distributed import take_device
from lavis_peft.runners.precision import FP16, take_precision


@dataclass(frozen=True)
class Source:
    """A checked run config, of which no weight was read yet.

    Args:
        cls: The model's class.
        section: Its `model` section.
        incoming: An adapter to put in; None where the section says it all.
        style: How the config writes questions and answers.
        processor: From an RGB picture to a tensor.
        generation: The defaults of its `run` section.
        device: Where to run.
        amp: Mixed precision, as its `run` section says.
        amp_dtype: What that computes in.
    """

    cls: type[Blip2InstructPeft]
    section: dict[str, Any]
    incoming: Any
    style: Style
    processor: Callable[[Any], Any]
    generation: Generation
    device: str
    amp: bool
    amp_dtype: str

    def model(self) -> Blip2InstructPeft:
        """The model with its weights, in evaluation mode on its device."""
        if self.incoming is not None:
            model: Any = loaded(self.cls, self.section, self.incoming)
        else:
            model = self.cls.from_config(self.section).eval()
        take_precision(model, self.amp, self.amp_dtype, self.device)
        return model.to(self.device)


def open_source(
    cfg_path: str | None, options: list[str], checkpoint: str | None, adapter: str | None, device: str
) -> Source:
    """Check everything that can be wrong before weights are read.

    Args:
        cfg_path: The run config; None takes the ``run.yaml`` in the adapter's folder.
        options: Overrides of it.
        checkpoint: A checkpoint of it.
        adapter: A folder of ``lavis-peft export`` or of peft's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: Something in the config is wrong, or names no weights.
        CheckpointError: The adapter can't be read or is of another model.
    """
    if cfg_path is None:
        cfg_path = str(Path(str(adapter)).expanduser() / "run.yaml")
    config, _ = read_run_file(cfg_path, options)
    check_config(config, where=cfg_path)
    cls = registry.get_model_class(config.model.arch)
    if not issubclass(cls, Blip2InstructPeft):
        raise ConfigError(f"model.arch: {config.model.arch} is not a model of this plugin", where=cfg_path)
    section = OmegaConf.to_container(model_section(config), resolve=True)
    if checkpoint is not None:
        section |= {"load_finetuned": True, "finetuned": checkpoint}
    # As `evaluate`: random weights are used where `load_pretrained: false` asks for them.
    given = section.get("load_finetuned") or section.get("pretrained") or section.get("load_pretrained") is False
    if not given:
        raise ConfigError(
            "the model would have random weights: give --checkpoint, --adapter, or base weights in model.pretrained",
            where=cfg_path,
        )
    incoming = read_incoming(cls, section, adapter) if adapter is not None else None
    if incoming is None and checkpoint is not None:
        cls.on_meta(section).read_own(checkpoint)  # a wrong one is found before base weights are read
    name, dataset = next(iter(dataset_sections(config).items()))
    builder = registry.get_builder_class(name)(dataset)
    if not hasattr(builder, "spec"):
        raise ConfigError(f"datasets.{name}: is not a dataset of this plugin, so it has no prompt", where=cfg_path)
    style = Style(builder.spec.prompt, builder.spec.target, builder.text_processors["eval"])
    keys = ("num_beams", "max_len", "min_len")
    generation = Generation(**{key: config.run[key] for key in keys if config.run.get(key)})
    run = config.run
    return Source(
        cls,
        section,
        incoming,
        style,
        builder.vis_processors["eval"],
        generation,
        take_device(device),
        bool(run.get("amp", False)),
        str(run.get("amp_dtype", FP16)),
    )
