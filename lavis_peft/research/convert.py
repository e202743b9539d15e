"""A run config of the research code rewritten as a file of the plugin's form."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lavis_peft import __version__
from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError
from lavis_peft.research import ARCHS, is_research
from lavis_peft.research.data import DATASETS
from lavis_peft.research.translate import translate
from lavis_peft.runners.config_file import load_yaml, section_problems


def converted(cfg_path: str, data: str | None = None) -> str:
    """The YAML text of the new form, with comments that say what it came from.

    Args:
        cfg_path: A run config of the research code.
        data: A folder that `lavis-peft prepare` wrote, for the paths of its dataset.

    Raises:
        ConfigError: It isn't such a config, or has keys that can't be honoured.
    """
    config = load_yaml(cfg_path)
    if problems := section_problems(config):
        raise ConfigError(problems, where=cfg_path)
    if not is_research(config):
        raise ConfigError(
            f"{cfg_path}: not a run config of the research code, so there is nothing to convert: model.arch is "
            f"{config.model.get('arch')!r}; its models: {listing(ARCHS)}"
        )
    translation = translate(OmegaConf.to_container(config, resolve=True), cfg_path)
    notes = list(translation.notes)
    sections = translation.config
    if data is not None:
        _put_in(sections["datasets"], data, notes)
    lines = [f"Converted by lavis-peft {__version__} from {Path(cfg_path).name}, a run config of the research code of"]
    lines += ["Kim et al. 2024 (github.com/AttentionX/InstructBLIP_PEFT). What it says there, and here:"]
    lines += [f"- {note}" for note in notes]
    if translation.dropped:
        lines += ["Left out, since it had no effect there:"]
        lines += [f"- {note}" for note in translation.dropped]
    head = "".join(f"# {line}\n" for line in lines)
    body = yaml.safe_dump(sections, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return head + body


def _put_in(datasets: dict[str, Any], data: str, notes: list[str]) -> None:
    """Take a prepared dataset's `build_info`."""
    path = Path(data).expanduser() / "dataset.yaml"
    prepared = OmegaConf.to_container(load_yaml(path), resolve=True).get("datasets") or {}
    ours = [name for name in prepared if name in datasets]
    if not ours:
        raise ConfigError(
            f"{path}: is of {listing(prepared) or 'no dataset'}; the run config needs {listing(datasets)}"
        )
    old = {new: name for name, new in DATASETS.items()}
    for name in ours:
        datasets[name]["build_info"] = prepared[name]["build_info"]
        given = f"datasets.{old.get(name, name)}.build_info:"
        notes[:] = [note for note in notes if not note.startswith(given)]
        notes.append(f"{given} from {path}")
