"""The `run` section of a run config as a typed, checked value."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.runners.foreign_keys import EPOCH_KEYS, ITERATION_KEYS, PROCESS_KEYS, REFUSED_KEYS, TASK_KEYS

#: Patience of the research code, where early stopping is on unless `disable_early_stopping` is true.
RESEARCH_PATIENCE = 3

#: The plugin's runners.
OURS = ("runner_peft", "runner_peft_iter")


def _key(
    default: Any, meaning: str, convert: Callable[[Any], Any], fits: Callable[[Any], bool] | None = None, must: str = ""
) -> Any:
    return field(default=default, metadata={"meaning": meaning, "convert": convert, "fits": fits, "must": must})


def _integer(value: Any) -> int:
    # LAVIS takes int("3") and would cut 3.7 to 3; the first is kind, the second hides a mistake.
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("a whole number")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError("a whole number") from None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        return float(value)  # LAVIS's own YAMLs write 1e-5, which YAML 1.1 reads as text
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError("text")
    return str(value)


def _splits(value: Any) -> tuple[str, ...]:
    # A bare string would be walked letter by letter.
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of split names, e.g. [val]")
    return tuple(value)


def _switch_or_auto(value: Any) -> bool | str:
    if value == "auto":
        return "auto"
    try:
        return _switch(value)
    except ValueError:
        raise ValueError("true, false or auto") from None


def _device(value: Any) -> str:
    kind, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdigit()):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return str(value)


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


@dataclass(frozen=True)
class RunSpec:
    """What runner_peft does. Field names are the YAML's keys; defaults are LAVIS's where LAVIS has one."""

    #: Keys that can't be set for this runner, and why.
    refused: ClassVar[Mapping[str, str]] = {**REFUSED_KEYS, **ITERATION_KEYS}
    #: Keys that training needs.
    needed: ClassVar[tuple[str, ...]] = ("max_epoch", "init_lr", "batch_size_train")

    task: str = _key("", "LAVIS task: how samples are trained on and scored", _text)
    runner: str = _key("runner_peft", "the runner; this table is runner_peft's", _text)
    max_epoch: int | None = _key(None, "epochs to train; needed for training", _integer, _positive, "at least 1")
    init_lr: float | None = _key(None, "learning rate; needed for training", _number, _positive, "above 0")
    lr_sched: str = _key("linear_warmup_cosine_lr", "learning-rate schedule", _text)
    min_lr: float = _key(0.0, "learning rate at the end of a decay", _number, _not_negative, "at least 0")
    warmup_lr: float = _key(-1.0, "learning rate at the start of the warm-up; negative: the schedule's own", _number)
    warmup_steps: int = _key(0, "warm-up, iterations", _integer, _not_negative, "at least 0")
    lr_decay_rate: float | None = _key(None, "factor per epoch of linear_warmup_step_lr", _number, _positive, "above 0")
    weight_decay: float = _key(
        0.05, "AdamW's weight decay; none on biases, norms and vectors", _number, _not_negative, "at least 0"
    )
    beta2: float = _key(0.999, "AdamW's second beta", _number, lambda value: 0 < value < 1, "between 0 and 1")
    batch_size_train: int | None = _key(
        None, "training batch per process; needed for training", _integer, _positive, "at least 1"
    )
    batch_size_eval: int | None = _key(
        None, "evaluation batch per process; default: batch_size_train, else 16", _integer, _positive, "at least 1"
    )
    accum_grad_iters: int = _key(1, "iterations per optimizer step", _integer, _positive, "at least 1")
    amp: bool = _key(False, "mixed precision with loss scaling (GPU only)", _switch)
    num_workers: int | None = _key(
        None, "data-loading processes; default: 4, on a CPU 0", _integer, _not_negative, "at least 0"
    )
    seed: int = _key(42, "seed of weights, order and augmentation", _integer, _not_negative, "at least 0")
    device: str = _key("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU where there is one", _device)
    output_dir: str = _key("output", "a run writes into output_dir/<start time>; relative to where it starts", _text)
    evaluate: bool = _key(False, "score the valid and test splits and don't train", _switch)
    train_splits: tuple[str, ...] = _key(("train",), "LAVIS trains on the split named train", _splits)
    valid_splits: tuple[str, ...] = _key((), "scored after each epoch; `val`, else the first, picks the best", _splits)
    test_splits: tuple[str, ...] = _key((), "scored at the end, with the best weights", _splits)
    val_freq: int = _key(1, "validate every n-th epoch, and after the last", _integer, _positive, "at least 1")
    save_freq: int = _key(5, "keep every n-th epoch's checkpoint besides the newest; 0: none", _integer)
    save_last: bool = _key(True, "keep the last epoch's checkpoint when the run is done", _switch)
    log_freq: int = _key(50, "iterations between log lines", _integer, _positive, "at least 1")
    early_stopping: int | None = _key(
        None,
        "stop after this many validations without a better metric; 0 or absent: never",
        _integer,
        _not_negative,
        "at least 0",
    )
    disable_early_stopping: bool | None = _key(
        None, "the research code's key: false means early_stopping: 3, true means 0", _switch
    )
    resume_ckpt_path: str | None = _key(
        None, "checkpoint to continue from; with evaluation, the checkpoint to score", _text
    )
    tensorboard: bool | str = _key("auto", "write TensorBoard scalars; auto: if it is installed", _switch_or_auto)
    use_dist_eval_sampler: bool = _key(True, "share evaluation among the processes", _switch)

    @property
    def patience(self) -> int:
        """Validations without a better metric before training stops; 0 is never."""
        if self.early_stopping is not None:
            return self.early_stopping
        return RESEARCH_PATIENCE if self.disable_early_stopping is False else 0

    @property
    def decisive_split(self) -> str | None:
        """The split whose metric picks the best epoch; LAVIS knows only one called `val`."""
        return "val" if "val" in self.valid_splits else next(iter(self.valid_splits), None)

    def training_problems(self) -> list[str]:
        """What is missing or contradictory for a training run; evaluation needs none of it."""
        problems = [f"run.{key}: needed for training" for key in self.needed if getattr(self, key) is None]
        if self.lr_sched == "linear_warmup_step_lr" and self.lr_decay_rate is None:
            problems.append("run.lr_decay_rate: needed by linear_warmup_step_lr")
        if self.patience and not self.valid_splits:
            problems.append("run.early_stopping: needs a split in run.valid_splits to watch")
        if self.train_splits != ("train",):
            problems.append(
                f"run.train_splits: LAVIS trains on the split named train; found {list(self.train_splits)}, use [train]"
            )
        return problems


@dataclass(frozen=True)
class IterRunSpec(RunSpec):
    """What runner_peft_iter does: as runner_peft, where an epoch is `iters_per_inner_epoch` iterations.

    The counting is that of LAVIS's `runner_iter`.
    """

    refused: ClassVar[Mapping[str, str]] = {**REFUSED_KEYS, **EPOCH_KEYS}
    needed: ClassVar[tuple[str, ...]] = ("max_iters", "iters_per_inner_epoch", "init_lr", "batch_size_train")

    max_iters: int | None = _key(None, "iterations to train; needed for training", _integer, _positive, "at least 1")
    iters_per_inner_epoch: int | None = _key(
        None,
        "iterations between two validations and checkpoints; needed for training",
        _integer,
        _positive,
        "at least 1",
    )

    @property
    def inner_epochs(self) -> int:
        """How many inner epochs the run has; 0 where it can't train."""
        return (self.max_iters or 0) // (self.iters_per_inner_epoch or 1)

    def training_problems(self) -> list[str]:
        """What is missing or contradictory for a training run."""
        problems = super().training_problems()
        if self.max_iters and self.iters_per_inner_epoch and self.max_iters % self.iters_per_inner_epoch:
            problems.append(
                f"run.max_iters: {self.max_iters} isn't a multiple of run.iters_per_inner_epoch="
                f"{self.iters_per_inner_epoch}; the last inner epoch would be cut short"
            )
        return problems


def parse_run(section: Mapping[str, Any], extra_keys: Iterable[str] = (), kind: type[RunSpec] = RunSpec) -> RunSpec:
    """Check a `run` section and turn it into a value.

    Args:
        section: The section as plain containers.
        extra_keys: Further keys that may stand in it, such as a task's own.
        kind: The class of the spec.

    Returns:
        The spec; keys that belong to tasks are left out.

    Raises:
        ConfigError: Lists every unknown key and every wrong type or value.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"run: must be a mapping, found {section!r}")
    keys = {spec.name: spec for spec in fields(kind) if spec.name not in kind.refused}
    problems = [f"run.{key}: {why}" for key, why in kind.refused.items() if section.get(key) is not None]
    known = {*keys, *TASK_KEYS, *PROCESS_KEYS, *kind.refused, *extra_keys}
    problems += [
        f"run.{key}: unknown key{suggestion(key, known)}; the runner's keys: {listing(keys)}"
        for key in section
        if key not in known
    ]
    values: dict[str, Any] = {}
    for name, value in section.items():
        if name not in keys or value is None:
            continue
        meta = keys[name].metadata
        try:
            values[name] = meta["convert"](value)
        except ValueError as error:
            problems.append(f"run.{name}: must be {error}, found {value!r}")
            continue
        if meta["fits"] and not meta["fits"](values[name]):
            problems.append(f"run.{name}: must be {meta['must']}, found {value!r}")
    if not section.get("task"):
        problems.append("run.task: missing")
    if values.get("disable_early_stopping") and values.get("early_stopping"):
        problems.append("run.disable_early_stopping: true, but run.early_stopping asks for it; keep one of them")
    if problems:
        raise ConfigError(problems)
    return kind(**values)
