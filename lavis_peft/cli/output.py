"""For commands that turn a checkpoint into files: the tuned model, and a folder that appears only when whole."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_peft.errors import ConfigError

#: How far a candidate's score may move. Float32 sums differ by rounding only; in half precision, weights are rounded.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}


def check_folder(output: Path) -> Path:
    """The folder's full path, if it can be written to.

    Raises:
        ConfigError: There is something in it.
    """
    output = output.expanduser().resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists already; give a new or empty folder")
    return output


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends well and leaves no trace when it doesn't.

    Args:
        output: What `check_folder` returned.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's folders are the owner's alone
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def tuned_model(config: Any, cfg_path: str, checkpoint: str, purpose: str) -> tuple[Any, dict[str, Any]]:
    """The model of a run config with a checkpoint in it, and its `model` section with defaults filled in.

    Args:
        config: The run config, overrides merged in.
        cfg_path: Its name, for messages.
        checkpoint: A runner's checkpoint, path or URL.
        purpose: What it is for, in a message: "nothing to …".

    Raises:
        ConfigError: It isn't a model of this plugin, or has no adapter.
        CheckpointError: The checkpoint can't be read or belongs to another model.
    """
    from lavis.common.registry import registry
    from omegaconf import OmegaConf

    from lavis_peft.runners.config import model_problems, model_section

    problems = model_problems(config.model)
    if not problems and not hasattr(registry.get_model_class(config.model.arch), "apply_adapters"):
        problems = [f"model.arch: {config.model.arch} is not a model of this plugin"]
    if problems:
        raise ConfigError(problems, where=cfg_path)
    section = OmegaConf.to_container(model_section(config), resolve=True)
    cls = registry.get_model_class(section["arch"])
    spec = cls.parse_config(section)
    modes = {spec.adapters.qformer.mode, spec.adapters.llm.mode}
    if "adapter" not in modes:
        raise ConfigError(f"model.adapters: names no adapter, so there is nothing to {purpose}", where=cfg_path)
    return cls.from_config({**section, "load_finetuned": True, "finetuned": checkpoint}).eval(), section


def tolerance(model: Any, dtype: str | None = None) -> float:
    """How far a candidate's score may move when the model's weights are written and read again.

    Args:
        model: The tuned model.
        dtype: The precision that weights are written in, if not their own.
    """
    return max(TOLERANCE[kind] for kind in (model.spec.llm_precision, model.spec.vit_precision, dtype or "fp32"))
