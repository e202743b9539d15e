"""For commands that turn a checkpoint into files: the tuned model, and a folder that appears only when whole."""

import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_peft.checks import unwritable
from lavis_peft.errors import ConfigError, VerificationFailed

#: How far a candidate's score may move. Float32 sums differ by rounding only; in half precision, weights are rounded.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}
#: How far the visual prefix may move, in units of its greatest value. Q-Former and projection are float32 unless
#: written otherwise; so this tells a missing Q-Former adapter from rounding in the language model.
PREFIX_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}


def check_folder(output: Path) -> Path:
    """The folder's full path, if it can be written to.

    Raises:
        ConfigError: There is something in it, or nothing can be put there.
    """
    output = output.expanduser().resolve()
    if problem := unwritable(output.parent):
        raise ConfigError(f"--output {output}: {problem}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists already; give a new or empty folder")
    return output


def check_checkpoint_name(output: str) -> Path:
    """The full path of a checkpoint to write, if it and a YAML beside it can be.

    Raises:
        ConfigError: With everything that stands against it.
    """
    target = Path(output).expanduser().resolve()
    problems = [] if target.suffix == ".pth" else [f"--output {target}: must end in .pth, as checkpoints do"]
    if problem := unwritable(target.parent):
        problems.append(f"--output {target}: {problem}")
    else:
        taken = [path for path in (target, target.with_suffix(".yaml")) if path.exists()]
        problems += [f"--output {path}: exists already; give a new name" for path in taken]
    if problems:
        raise ConfigError(problems)
    return target


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends well and leaves no trace when it doesn't.

    Args:
        output: What `check_folder` returned.

    Raises:
        WriteError: There is no room for it, or it can't be written otherwise.
    """
    from lavis_peft.adapters.files import writing

    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        with writing(output), _ending_in_order():
            yield partial
        partial.chmod(0o755)  # mkdtemp's folders are the owner's alone
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a SIGTERM end the process as an interrupt does: by way of what cleans up, which its default passes over."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can handlers be set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tuned_section(config: Any, cfg_path: str, purpose: str) -> tuple[Any, dict[str, Any]]:
    """The class of a run config's model, and its `model` section with defaults filled in.

    Args:
        config: The run config, overrides merged in.
        cfg_path: Its name, for messages.
        purpose: What it is for, in a message: "nothing to …"; empty where it needs no adapter.

    Raises:
        ConfigError: It isn't a model of this plugin, or has no adapter.
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
    if purpose and "adapter" not in {spec.adapters.qformer.mode, spec.adapters.llm.mode}:
        raise ConfigError(f"model.adapters: names no adapter, so there is nothing to {purpose}", where=cfg_path)
    return cls, section


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
    cls, section = tuned_section(config, cfg_path, purpose)
    cls.on_meta(section).read_own(checkpoint)  # a wrong one is found before base weights are read
    return cls.from_config({**section, "load_finetuned": True, "finetuned": checkpoint}).eval(), section


def check_difference(what: str, tuned: Any, written: Any, dtype: str | None = None, hint: str = "") -> dict[str, float]:
    """See that what was written computes what the tuned model computes.

    Args:
        what: The subject of the message.
        tuned: The tuned model.
        written: The model built from the files.
        dtype: The precision that Q-Former and projection were written in, if not their own.
        hint: More to say where scores in half precision are too far apart.

    Returns:
        ``difference`` of a candidate's score and its ``tolerance``, ``prefix_difference`` and ``prefix_tolerance``.

    Raises:
        VerificationFailed: They are too far apart.
    """
    import torch

    from lavis_peft.models.merged import compare

    own = dtype or "fp32"
    computed = "bf16" if tuned.autocast_dtype() == torch.bfloat16 else "fp32"  # as float16 is on a CPU
    allowed = max(TOLERANCE[kind] for kind in (tuned.spec.llm_precision, tuned.spec.vit_precision, own, computed))
    score, prefix = compare(tuned, written)
    if not (score <= allowed and prefix <= PREFIX_TOLERANCE[own]):
        more = hint if prefix <= PREFIX_TOLERANCE[own] and allowed > TOLERANCE["fp32"] else ""
        raise VerificationFailed(
            f"{what} computes something else than the tuned one: scores differ by {score:.2e} (allowed {allowed:.0e}), "
            f"the visual prefix by {prefix:.2e} of its size (allowed {PREFIX_TOLERANCE[own]:.0e}); nothing was written"
            + more
        )
    return {
        "difference": score,
        "tolerance": allowed,
        "prefix_difference": prefix,
        "prefix_tolerance": PREFIX_TOLERANCE[own],
    }
