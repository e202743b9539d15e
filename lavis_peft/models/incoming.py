"""What was trained of a model, wherever it lies: a run's checkpoint, an exported adapter, a folder of peft's."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import OmegaConf
from torch import nn

from lavis_peft import __version__
from lavis_peft.adapters.checkpoint import atomic_file, model_state, read_checkpoint, save_atomic
from lavis_peft.adapters.export import CONFIG, TRAINED
from lavis_peft.adapters.identity import HEADER, header
from lavis_peft.adapters.imported import PartAdapter, read_folder, spec_of
from lavis_peft.adapters.imported_state import part_state
from lavis_peft.adapters.spec import TRAINABLE_EXTRAS, AdaptersSpec, parse_adapters
from lavis_peft.checks import first_line, listing
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.hf.keys import to_lavis
from lavis_peft.models.beside import wrapped_name

_log = logging.getLogger(__name__)

#: The folders of an exported adapter, by the part that they are of.
PARTS = ("qformer", "llm")


@dataclass(frozen=True)
class Incoming:
    """Adapters of a model and what trained besides.

    Args:
        source: Where they are from.
        adapters: Their settings.
        state: The tensors, under the model's own names.
    """

    source: str
    adapters: AdaptersSpec
    state: Mapping[str, Any] = field(repr=False)


def read_incoming(cls: Any, section: Mapping[str, Any], source: str | os.PathLike[str]) -> Incoming:
    """Read what was trained of a model; no base weight is read.

    Args:
        cls: The model's class.
        section: Its `model` section; the adapters in it don't matter.
        source: A checkpoint (path or address), a folder of ``lavis-peft export``, or one of peft's.

    Raises:
        ConfigError: It has settings that can't be kept here.
        CheckpointError: It can't be read, or is of another model.
    """
    name = os.fspath(source)
    plain = {key: value for key, value in section.items() if key not in ("adapters", "finetuned", "load_finetuned")}
    if urlparse(name).scheme not in ("http", "https") and Path(name).expanduser().is_dir():
        return _from_folder(cls, plain, Path(name).expanduser(), name)
    found = read_checkpoint(name)
    entry = found.get(HEADER)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("adapters"), Mapping):
        raise CheckpointError(f"{name}: has no `{HEADER}` entry, which says what its adapters are")
    if entry.get("arch") != cls.arch:
        raise CheckpointError(f"{name}: of {entry.get('arch')}; this model is {cls.arch}")
    adapters = parse_adapters(entry["adapters"], llm_family=cls.family, where=f"{name}: model.adapters")
    return _checked(cls, plain, adapters, model_state(found, name), name)


def _from_folder(cls: Any, section: dict[str, Any], folder: Path, name: str) -> Incoming:
    parts = _parts(folder, name)
    bare = cls.on_meta(section).adapter_parts()
    families = {"qformer": "qformer", "llm": cls.family}
    problems, specs = [], {}
    for part, adapter in parts.items():
        try:
            specs[part] = spec_of(adapter, bare[part], families[part], f"{name}: {part}")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    beside = folder.absolute().parent / TRAINED
    if (folder / CONFIG).is_file() and folder.name in PARTS and beside.is_file():
        _log.warning("%s: one part alone; what trained besides, %s isn't in it", name, beside)
    rest = _rest(cls, folder / TRAINED)
    train = tuple(extra for extra in TRAINABLE_EXTRAS if any(_is_of(cls, key, extra) for key in rest))
    section_of = {**{part: spec.as_section() for part, spec in specs.items()}, "train": list(train)}
    adapters = parse_adapters(section_of, llm_family=cls.family, where=f"{name}: model.adapters")
    model = cls.on_meta({**section, "adapters": adapters.as_dict()})
    places = {id(module): place for place, module in model.named_modules()}
    # The base's own biases, where they were tuned, are under plain names.
    state = {wrapped_name(key, model): value for key, value in rest.items()}
    for part, adapter in parts.items():
        module = model.adapter_parts()[part]
        own = part_state(adapter, module, f"{name}: {part}")
        state |= {f"{places[id(module)]}.{key}": value for key, value in own.items()}
    return _checked(cls, section, adapters, state, name, model)


def _parts(folder: Path, name: str) -> dict[str, PartAdapter]:
    """A folder of peft's, or one of ours with such a folder for each part."""
    folders = [folder] if (folder / CONFIG).is_file() else [folder / part for part in PARTS]
    folders = [each for each in folders if (each / CONFIG).is_file()]
    if not folders:
        raise CheckpointError(f"{name}: no {CONFIG} in it, nor in {listing(PARTS)} below it")
    parts: dict[str, PartAdapter] = {}
    for each in folders:
        parts |= read_folder(each)
    return parts


def _rest(cls: Any, path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = model_state(read_checkpoint(path), str(path))
    theirs = any(key.startswith(("language_projection.", "vision_model.")) for key in found)
    return {(to_lavis(key, cls.family) if theirs else key): value for key, value in found.items()}


def _is_of(cls: Any, key: str, extra: str) -> bool:
    name = cls.projection_key if extra == "projection" else extra
    return key == name or key.startswith(f"{name}.")


def _checked(
    cls: Any, section: dict[str, Any], adapters: AdaptersSpec, state: Mapping[str, Any], name: str, model: Any = None
) -> Incoming:
    model = model or cls.on_meta({**section, "adapters": adapters.as_dict()})
    try:
        model.check_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {first_line(error)}") from error
    return Incoming(name, adapters, state)


def loaded(cls: Any, section: Mapping[str, Any], incoming: Incoming) -> nn.Module:
    """A model with its base weights and what was trained of it, in evaluation mode.

    Args:
        cls: The model's class.
        section: Its `model` section; the adapters in it are replaced.
        incoming: What was trained.
    """
    kept = {key: value for key, value in section.items() if key not in ("finetuned", "load_finetuned")}
    model = cls.from_config({**kept, "adapters": incoming.adapters.as_dict()})
    model.load_state_dict(incoming.state)
    return model.eval()


def write_checkpoint(
    cls: Any,
    section: Mapping[str, Any],
    incoming: Incoming,
    target: Path,
    run: Mapping[str, Any],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write a checkpoint as a run does, and beside it a run config that uses it.

    Args:
        cls: The model's class.
        section: Its `model` section, defaults filled in.
        incoming: What was trained.
        target: The checkpoint; the run config has its name and ends in ``.yaml``.
        run: A run config, whose other sections are taken over; may be empty.
        about: Further entries of the checkpoint.

    Returns:
        The two files.

    Raises:
        CheckpointError: The tensors don't fit the model; nothing was written.
    """
    kept = {key: value for key, value in section.items() if key not in ("finetuned", "load_finetuned")}
    kept["adapters"] = incoming.adapters.as_dict()
    model = cls.on_meta(kept)
    model.check_state(incoming.state)
    entry = header(__version__, cls.arch, str(section.get("model_type", "")), incoming.adapters)
    save_atomic({"model": dict(incoming.state), HEADER: entry, **about}, target)
    rest = {key: dict(run[key]) for key in ("datasets", "run") if run.get(key)}
    rest.get("run", {}).pop("resume_ckpt_path", None)  # of another model
    config = OmegaConf.create({"model": {**kept, "load_finetuned": True, "finetuned": str(target)}, **rest})
    beside = target.with_suffix(".yaml")
    try:
        with atomic_file(beside) as file:
            file.write(f"# {incoming.source}\n{OmegaConf.to_yaml(config)}".encode())
    except BaseException:
        target.unlink()  # a name that is taken is refused the next time
        raise
    return [target, beside]
