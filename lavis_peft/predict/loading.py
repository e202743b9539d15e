"""The model that is asked, and how its run config writes questions. This module imports LAVIS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lavis.common.registry import registry
from omegaconf import DictConfig, OmegaConf

from lavis_peft.errors import ConfigError
from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.incoming import loaded, read_incoming
from lavis_peft.models.load import read_run
from lavis_peft.predict.asking import Writer
from lavis_peft.predict.questions import Style
from lavis_peft.runners import values
from lavis_peft.runners.config import dataset_sections
from lavis_peft.runners.distributed import take_device
from lavis_peft.runners.precision import FP16, take_precision
from lavis_peft.tasks.captioning import CaptioningTask
from lavis_peft.tasks.generation import answers, captions, check_finite
from lavis_peft.tasks.options import GenerationOptions, parse_options


@dataclass(frozen=True)
class Source:
    """A checked run config, of which no weight was read yet.

    Args:
        cls: The model's class.
        section: Its `model` section.
        incoming: An adapter to put in; None where the section says it all.
        style: How the config writes questions and answers.
        processor: From an RGB picture to a tensor.
        write: Generates answers as its task does.
        device: Where to run.
        amp: Mixed precision, as its `run` section says.
        amp_dtype: What that computes in.
    """

    cls: type[Blip2InstructPeft]
    section: dict[str, Any]
    incoming: Any
    style: Style
    processor: Callable[[Any], Any]
    write: Writer
    device: str
    amp: bool
    amp_dtype: str

    def model(self) -> Blip2InstructPeft:
        """The model with its weights, in evaluation mode on its device.

        Raises:
            CheckpointError: Weights can't be read, or are another model's.
            DataError: They aren't numbers.
        """
        if self.incoming is not None:
            model: Any = loaded(self.cls, self.section, self.incoming)
        else:
            model = self.cls.from_config(self.section).eval()
        check_finite(model)
        take_precision(model, self.amp, self.amp_dtype, self.device)
        return model.to(self.device)


def open_source(
    cfg_path: str,
    options: Sequence[str],
    checkpoint: str | None,
    adapter: str | None,
    device: str,
    generation: Mapping[str, int],
) -> Source:
    """Check everything that can be wrong before weights are read.

    Args:
        cfg_path: The run config.
        options: Overrides of it.
        checkpoint: A checkpoint of it.
        adapter: A folder of ``lavis-peft export`` or of peft's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        generation: Overrides of how its task generates: ``num_beams``, ``max_len``.

    Raises:
        ConfigError: Something in the config is wrong, or names no weights.
        CheckpointError: The adapter can't be read or is of another model.
    """
    try:
        device = take_device(values.device(device))
    except ValueError as error:
        raise ConfigError(f"--device {device}: give {error}") from None
    config, cls, section = read_run(cfg_path, checkpoint, options)
    # As `evaluate`: random weights are used where `load_pretrained: false` asks for them.
    given = section.get("load_finetuned") or section.get("pretrained") or section.get("load_pretrained") is False
    if not given:
        raise ConfigError(
            "the model would have random weights: give --checkpoint, --adapter, or base weights in model.pretrained",
            where=cfg_path,
        )
    write = _writer(config, generation)
    incoming = read_incoming(cls, section, adapter) if adapter is not None else None
    if incoming is None and checkpoint is not None:
        cls.on_meta(section).read_own(checkpoint)  # a wrong one is found before base weights are read
    name, dataset = next(iter(dataset_sections(config).items()))
    builder = registry.get_builder_class(name)(dataset)
    if not hasattr(builder, "spec"):
        raise ConfigError(f"datasets.{name}: is not a dataset of this plugin, so it has no prompt", where=cfg_path)
    style = Style(builder.spec.prompt, builder.spec.target, builder.text_processors["eval"])
    amp, amp_dtype = bool(config.run.get("amp", False)), str(config.run.get("amp_dtype", FP16))
    return Source(cls, section, incoming, style, builder.vis_processors["eval"], write, device, amp, amp_dtype)


def _writer(config: DictConfig, generation: Mapping[str, int]) -> Writer:
    """What the run's task evaluates by, so that its answers come again."""
    task = registry.get_task_class(config.run.task)
    run = {**OmegaConf.to_container(config.run, resolve=True), **generation}
    chosen = parse_options(run, getattr(task, "options_type", GenerationOptions))
    return partial(captions if issubclass(task, CaptioningTask) else answers, options=chosen)
