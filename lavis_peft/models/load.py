"""A tuned model for use in Python, from the run config it was trained or merged with."""

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from lavis_peft.errors import ConfigError
from lavis_peft.models.base import Blip2InstructPeft


def read_run(
    cfg_path: str, checkpoint: str | None = None, options: Sequence[str] = ()
) -> tuple[DictConfig, type[Blip2InstructPeft], dict[str, Any]]:
    """A checked run config of a model of this plugin; no weight is read.

    Args:
        cfg_path: The run config.
        checkpoint: A checkpoint of that run (path or URL).
        options: Overrides of the config, ``key=value`` each.

    Returns:
        The config with the overrides in it, the model's class, and its `model` section with defaults and the
        checkpoint filled in.

    Raises:
        ConfigError: Something in the config is wrong.
    """
    from lavis.common.registry import registry
    from omegaconf import OmegaConf

    from lavis_peft.runners.config import check_config, model_section
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    # No run reads or fills it here, and this may be a machine that hasn't its disk.
    config.run.pop("feature_cache", None)
    check_config(config, where=cfg_path)
    cls = registry.get_model_class(config.model.arch)
    if not issubclass(cls, Blip2InstructPeft):
        raise ConfigError(f"model.arch: {config.model.arch} is not a model of this plugin", where=cfg_path)
    section = OmegaConf.to_container(model_section(config), resolve=True)
    if checkpoint is not None:
        section |= {"load_finetuned": True, "finetuned": checkpoint}
    return config, cls, section


def load_run(
    cfg_path: str, checkpoint: str | None = None, options: Sequence[str] = ()
) -> tuple[Blip2InstructPeft, Callable[[Any], Any]]:
    """The model of a run config, and the image processor its dataset evaluates with.

    Args:
        cfg_path: The run config; ``run.yaml`` of a merged model needs no checkpoint.
        checkpoint: A checkpoint of that run (path or URL).
        options: Overrides of the config, ``key=value`` each.

    Returns:
        The model in evaluation mode, and a function from a PIL image to a tensor (3, H, W).

    Raises:
        ConfigError: Something in the config is wrong.
        CheckpointError: The checkpoint can't be read or belongs to another model.
    """
    from lavis.common.registry import registry

    from lavis_peft.runners.config import dataset_sections

    config, cls, section = read_run(cfg_path, checkpoint, options)
    dataset = next(iter(dataset_sections(config).values()))
    processor = dataset.vis_processor.eval
    return cls.from_config(section).eval(), registry.get_processor_class(processor.name).from_config(processor)
