"""LAVIS's Config with the checks LAVIS leaves out, and with every override taking effect."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lavis.common.config import Config
from lavis.common.registry import registry
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_peft.checks import first_line, listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.features.config import cache_of, cache_problems, check_processors
from lavis_peft.research import ARCHS
from lavis_peft.runners.config_file import read_run_file
from lavis_peft.runners.spec import OURS, IterRunSpec, RunSpec, parse_run

#: A run config that has one of these is meant for training, so that what training needs can be asked for early.
_TRAINING_KEYS = ("max_epoch", "max_iters", "init_lr", "lr_sched")


class RunConfig(Config):
    """LAVIS's run config, checked as a whole before any dataset or model is built.

    Differs from LAVIS's in what an override reaches: ``model.model_type=…`` and ``datasets.NAME.type=…`` choose the
    default YAML too, where LAVIS reads the file's own and ignores the override.

    Args:
        args: `cfg_path` and `options` as LAVIS's scripts parse them.

    Raises:
        ConfigError: Whatever is wrong with the file, the overrides or the names in them; all problems at once.
    """

    def __init__(self, args: Namespace) -> None:
        self._merged, pairs = read_run_file(args.cfg_path, args.options)
        check_config(self._merged, where=str(args.cfg_path))
        # The overrides are in what the methods below give; once more, in the file's own words, they may not fit.
        super().__init__(Namespace(**{**vars(args), "options": None}))
        self.args = Namespace(**{**vars(args), "options": pairs})
        _fill_defaults(self.config)

    def build_runner_config(self, config: DictConfig) -> dict[str, DictConfig]:
        """LAVIS's method, given the overridden run section."""
        return Config.build_runner_config(self._merged)

    def build_model_config(self, config: DictConfig, **kwargs: Any) -> DictConfig:
        """LAVIS's method, given the overridden model section."""
        return Config.build_model_config(self._merged)

    def build_dataset_config(self, config: DictConfig) -> DictConfig:
        """LAVIS's method, given the overridden dataset sections."""
        return Config.build_dataset_config(self._merged)


def model_section(config: DictConfig) -> DictConfig:
    """The model section with its default YAML merged in, as LAVIS does it.

    `hooks.install` puts `RunConfig` in the place of LAVIS's class, and there this is a method of a whole run config; so
    code that has a file's content alone asks here.

    Args:
        config: The file with its overrides merged in.
    """
    with _merging("model"):
        return Config.build_model_config(config).model


def dataset_sections(config: DictConfig) -> DictConfig:
    """The dataset sections with their default YAMLs merged in; as `model_section`."""
    with _merging("datasets"):
        return Config.build_dataset_config(config).datasets


@contextmanager
def _merging(section: str) -> Iterator[None]:
    """Name the section whose values aren't of the kind that the default YAML has in their place."""
    try:
        yield
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{section}: doesn't fit the default YAML's section: {first_line(error)}") from error


def runner_name(config: DictConfig) -> str:
    """The runner that a config asks for: by name, or ours for a model of ours, or else LAVIS's default."""
    named = config.run.get("runner")
    model_cls = registry.get_model_class(str(config.model.get("arch")))
    ours = model_cls is not None and _is_plugins(model_cls)
    return str(named or ("runner_peft" if ours else "runner_base"))


def run_spec(run: DictConfig) -> RunSpec:
    """The run section of a LAVIS config as a value.

    Args:
        run: The section.

    Raises:
        ConfigError: As :func:`parse_run`.
    """
    plain = OmegaConf.to_container(run, resolve=True)
    # A task of one's own names the run keys it reads in a class attribute `run_keys`.
    task = registry.get_task_class(str(run.get("task")))
    kind = IterRunSpec if run.get("runner") == "runner_peft_iter" else RunSpec
    return parse_run(plain, extra_keys=getattr(task, "run_keys", ()), kind=kind)


def check_config(config: DictConfig, where: str = "") -> None:
    """Look up every name that a run config gives, and check each section by what will read it.

    Args:
        config: The file with its overrides merged in.
        where: The file's name, for the message.

    Raises:
        ConfigError: Lists the problems of all sections.
    """
    problems = model_problems(config.model) or _model_section_problems(config)
    foreign = None if runner_name(config) in OURS else runner_name(config)
    problems += cache_problems(config.run, registry.get_model_class(str(config.model.get("arch"))), foreign)
    for name, section in config.datasets.items():
        problems += _dataset_problems(name, section) or _dataset_section_problems(name, section, config)
    problems += _run_problems(config)
    if problems:
        raise ConfigError(problems, where=where)


def _found_by(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    except OmegaConfBaseException as error:
        return [first_line(error)]
    return []


def _is_plugins(cls: Any) -> bool:
    return cls.__module__.startswith("lavis_peft.")


def _run_problems(config: DictConfig) -> list[str]:
    run = config.run
    names = [
        ("run.runner", run.get("runner"), registry.list_runners()),
        ("run.task", run.get("task"), registry.list_tasks()),
        ("run.lr_sched", run.get("lr_sched"), registry.list_lr_schedulers()),
    ]
    problems = [_unknown(key, name, known) for key, name, known in names if name is not None and name not in known]
    if runner_name(config) in OURS:
        problems += _found_by(lambda: _check_run_section(run))
    task = registry.get_task_class(str(run.get("task")))
    if task is not None and _is_plugins(task):
        problems += _found_by(lambda: task.setup_task(cfg=Namespace(run_cfg=run)))
    return problems


def _check_run_section(run: DictConfig) -> None:
    spec = run_spec(run)
    if not spec.evaluate and any(key in run for key in _TRAINING_KEYS) and (problems := spec.training_problems()):
        raise ConfigError(problems)


def _model_section_problems(config: DictConfig) -> list[str]:
    model_cls = registry.get_model_class(config.model.arch)
    if not hasattr(model_cls, "parse_config"):
        return []
    return _found_by(lambda: model_cls.parse_config(model_section(config)))


def _dataset_section_problems(name: str, section: DictConfig, config: DictConfig) -> list[str]:
    builder, cache = registry.get_builder_class(name), cache_of(config.run)
    if not _is_plugins(builder):
        return [] if cache is None else [f"run.feature_cache: needs datasets of the plugin's, and {name} isn't"]
    # The plugin's builders check their section when they are made, and read the data later.
    alone = OmegaConf.create({"datasets": {name: section}})

    def check() -> None:
        processors = builder(dataset_sections(alone)[name]).vis_processors
        if cache is not None:
            check_processors(cache, processors, f"datasets.{name}.vis_processor", bool(config.run.get("evaluate")))

    return _found_by(check)


def _unknown(key: str, name: object, known: list[str]) -> str:
    return f"{key}: unknown name {name!r}{suggestion(name, known)}; registered: {listing(known)}"


def model_problems(model: DictConfig) -> list[str]:
    """What is wrong with the names in a `model` section: its class and its type."""
    arch = model.get("arch")
    if arch is None:
        return [f"model.arch: missing; registered: {listing(registry.list_models())}"]
    model_cls = registry.get_model_class(str(arch))
    if model_cls is None:
        return [_unknown("model.arch", arch, [*registry.list_models(), *ARCHS])]
    types = list(getattr(model_cls, "PRETRAINED_MODEL_CONFIG_DICT", {}))
    kind = model.get("model_type")
    if kind is None:
        return [f"model.model_type: missing; {arch} has: {listing(types)}"]
    if kind not in types:
        return [f"model.model_type: unknown type {kind!r}{suggestion(kind, types)}; {arch} has: {listing(types)}"]
    return []


def _dataset_problems(name: str, section: Any) -> list[str]:
    builder = registry.get_builder_class(name)
    if builder is None:
        return [_unknown("datasets", name, registry.list_datasets())]
    if not isinstance(section, DictConfig):
        return [f"datasets.{name}: must be a mapping, found {section!r}"]
    types = list(getattr(builder, "DATASET_CONFIG_DICT", {}))
    kind = section.get("type", "default")
    if types and kind not in types:
        hint = suggestion(kind, types)
        return [f"datasets.{name}.type: unknown type {kind!r}{hint}; {name} has: {listing(types)}"]
    return []


def gives_weights(config: Any) -> bool:
    """Whether a config names weights to start from: base weights, a finetuned model, or a checkpoint.

    Args:
        config: A LAVIS config, the model's default YAML merged in.
    """
    model = config.model_cfg
    return bool(
        config.run_cfg.get("resume_ckpt_path")
        or (model.get("load_finetuned") and model.get("finetuned"))
        or (model.get("load_pretrained", True) and model.get("pretrained"))
    )


def _fill_defaults(config: DictConfig) -> None:
    # LAVIS's scripts and tasks read these as attributes and fail on the first that the YAML leaves out.
    for key, value in {"runner": runner_name(config), "seed": 42, "evaluate": False}.items():
        if config.run.get(key) is None:
            config.run[key] = value
