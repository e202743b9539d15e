"""A run's YAML and its `--options`, read and checked without importing LAVIS."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.research import adopted

SECTIONS = ("model", "datasets", "run")
#: Values in a run config, aliases written out; the largest real ones have a few hundred.
_MOST = 100_000


def read_run_file(
    cfg_path: str | os.PathLike[str], options: Sequence[str] | None = None
) -> tuple[DictConfig, list[str]]:
    """Read a run config and its overrides.

    Args:
        cfg_path: The YAML file.
        options: Overrides, ``key=value`` each, or LAVIS's older form: keys and values in turn.

    Returns:
        The config as the file has it, overrides merged in, and the overrides as ``key=value``. A run config of the
        research code comes in the plugin's form.

    Raises:
        ConfigError: The file can't be read, lacks a section, or an override is malformed; all problems at once.
    """
    return with_options(load_yaml(cfg_path), options or [], str(cfg_path))


def with_options(config: DictConfig, options: Sequence[str], where: str) -> tuple[DictConfig, list[str]]:
    """A run config with its overrides merged in.

    Args:
        config: The content of a run config's file.
        options: As for `read_run_file`.
        where: The file's name, for messages.

    Returns:
        As `read_run_file`.

    Raises:
        ConfigError: A section is missing, or an override is malformed; all problems at once.
    """
    pairs, problems = parse_options(options)
    problems += section_problems(config)
    if problems:
        raise ConfigError(problems, where=where)
    known = config.get("datasets") or {}
    for pair in pairs:
        problems += _dataset_problem(pair, known)
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist(pairs))
        OmegaConf.resolve(merged)  # each section is looked at by itself later
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        problems.append(f"the values don't fit together: {_first_line(error)}")
    if problems:
        raise ConfigError(problems, where=where)
    return adopted(merged, where), pairs


def parse_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """``key=value`` for each override, and what is wrong with them."""
    if options and not any("=" in option for option in options):
        if len(options) % 2:
            return [], [f"--options {' '.join(options)}: must be KEY=VALUE, e.g. run.max_epoch=3"]
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    pairs, problems = [], []
    for option in options:
        key, equals, _ = option.partition("=")
        section, dot, rest = key.partition(".")
        if not equals:
            problems.append(f"--options {option}: must be KEY=VALUE, e.g. run.max_epoch=3")
        elif section not in SECTIONS:
            problems.append(
                f"--options {option}: no section '{section}'{suggestion(section, SECTIONS)}; "
                f"a key begins with one of: {listing(SECTIONS)}"
            )
        elif not dot or not rest:
            problems.append(f"--options {option}: must name a key in '{section}', e.g. {section}.KEY=VALUE")
        else:
            problems += _value_problem(option)
            pairs.append(option)
    return pairs, problems


def _value_problem(option: str) -> list[str]:
    try:
        OmegaConf.from_dotlist([option])
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        return [f"--options {option}: the value isn't YAML ({_first_line(error)})"]
    return []


def _dataset_problem(pair: str, known: Any) -> list[str]:
    section, name = pair.partition("=")[0].split(".")[:2]
    if section != "datasets" or name in known:
        return []
    return [f"--options {pair}: the config has no dataset '{name}'{suggestion(name, known)}; it has: {listing(known)}"]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def load_yaml(cfg_path: str | os.PathLike[str]) -> DictConfig:
    """The mapping in a YAML file.

    Args:
        cfg_path: The file; ``~`` is the user's home.

    Raises:
        ConfigError: It isn't there, can't be read, isn't YAML or isn't a mapping.
    """
    shown, path = str(cfg_path), Path(os.fspath(cfg_path)).expanduser()
    if path.is_dir():
        raise ConfigError(f"{shown}: is a directory; give the YAML file of a run")
    try:
        text = path.read_text(encoding="utf-8")
        if not _is_finite(text):
            raise ConfigError(f"{shown}: too large: its aliases (*name) repeat one another more than {_MOST:,} times")
        config = OmegaConf.load(io.StringIO(text))
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except RecursionError:
        raise ConfigError(f"{shown}: its sections are nested too deeply") from None
    except (YAMLError, ValueError, TypeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{shown}: isn't YAML: {_yaml_place(error)}") from None
    except OSError as error:
        raise ConfigError(f"{shown}: can't be read: {error.strerror or error}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{shown}: isn't a run config; it must be a mapping with the sections {listing(SECTIONS)}")
    return config


def _is_finite(text: str) -> bool:
    """Whether a YAML is of a bounded size once its aliases are written out, which OmegaConf does."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST  # within itself, a node has no end
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            pairs = [each for item in inner for each in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = min(1 + sum(map(size, pairs)), _MOST)
        return sizes[id(node)]

    return root is None or size(root) < _MOST


def _yaml_place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or _first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else reason


def section_problems(config: DictConfig) -> list[str]:
    """What is wrong with the sections of a run config as such: strangers, missing ones, no mappings."""
    strangers = [name for name in config if name not in SECTIONS]
    problems = [
        f"{name}: unknown section{suggestion(name, SECTIONS)}; allowed: {listing(SECTIONS)}" for name in strangers
    ]
    for name in SECTIONS:
        if name not in config:
            problems.append(f"{name}: missing section")
            continue
        try:
            section = config[name]
        except OmegaConfBaseException as error:
            problems.append(f"{name}: {_first_line(error)}")
            continue
        if not isinstance(section, DictConfig) or not len(section):
            problems.append(f"{name}: must be a mapping, found {section!r}")
    return problems
