"""The `run` section of a run config as a typed, checked value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.features.spec import CacheSpec, feature_cache
from lavis_peft.runners.foreign_keys import EPOCH_KEYS, ITERATION_KEYS, PROCESS_KEYS, REFUSED_KEYS, TASK_KEYS
from lavis_peft.runners.precision import BF16, FP16
from lavis_peft.runners.values import (
    choice,
    device,
    integer,
    key,
    key_names,
    not_negative,
    number,
    positive,
    splits,
    switch,
    switch_or_auto,
    text,
)

#: Patience of the research code, where early stopping is on unless `disable_early_stopping` is true.
RESEARCH_PATIENCE = 3
#: `resume_ckpt_path` for the newest run there is.
AUTO = "auto"
#: The plugin's runners.
OURS = ("runner_peft", "runner_peft_iter")


@dataclass(frozen=True)
class RunSpec:
    """What runner_peft does. Field names are the YAML's keys; defaults are LAVIS's where LAVIS has one."""

    #: Keys that can't be set for this runner, and why.
    refused: ClassVar[Mapping[str, str]] = {**REFUSED_KEYS, **ITERATION_KEYS}
    #: Keys that training needs.
    needed: ClassVar[tuple[str, ...]] = ("max_epoch", "init_lr", "batch_size_train")

    task: str = key("", "LAVIS task: how samples are trained on and scored", text)
    runner: str = key("runner_peft", "the runner; this table is runner_peft's", text)
    max_epoch: int | None = key(None, "epochs to train; needed for training", integer, positive, "at least 1")
    init_lr: float | None = key(None, "learning rate; needed for training", number, positive, "above 0")
    lr_sched: str = key("linear_warmup_cosine_lr", "learning-rate schedule", text)
    min_lr: float = key(0.0, "learning rate at the end of a decay", number, not_negative, "at least 0")
    warmup_lr: float = key(-1.0, "learning rate at the start of the warm-up; negative: the schedule's own", number)
    warmup_steps: int = key(0, "warm-up, iterations", integer, not_negative, "at least 0")
    lr_decay_rate: float | None = key(None, "factor per epoch of linear_warmup_step_lr", number, positive, "above 0")
    weight_decay: float = key(
        0.05,
        "AdamW's weight decay; none on biases, norms and vectors",
        number,
        not_negative,
        "at least 0",
    )
    beta2: float = key(0.999, "AdamW's second beta", number, lambda value: 0 < value < 1, "between 0 and 1")
    batch_size_train: int | None = key(
        None, "training batch per process; needed for training", integer, positive, "at least 1"
    )
    batch_size_eval: int | None = key(
        None,
        "evaluation batch per process; default: batch_size_train, else 16",
        integer,
        positive,
        "at least 1",
    )
    group_by_length: bool = key(False, "training batches of samples whose texts are about as long", switch)
    accum_grad_iters: int = key(1, "iterations per optimizer step", integer, positive, "at least 1")
    amp: bool = key(False, "mixed precision; on a CPU with amp_dtype: bf16 only", switch)
    amp_dtype: str = key(
        FP16,
        "what mixed precision computes in: fp16, with loss scaling, as LAVIS; or bf16, without",
        choice(FP16, BF16),
    )
    num_workers: int | None = key(
        None,
        "data-loading processes; default: 4, or one per core if there are fewer; on a CPU 0",
        integer,
        not_negative,
        "at least 0",
    )
    seed: int = key(42, "seed of weights, order and augmentation", integer, not_negative, "at least 0")
    device: str = key("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU where there is one", device)
    output_dir: str = key("output", "a run writes into output_dir/<start time>; relative to where it starts", text)
    evaluate: bool = key(False, "score the valid and test splits and don't train", switch)
    train_splits: tuple[str, ...] = key(("train",), "LAVIS trains on the split named train", splits)
    valid_splits: tuple[str, ...] = key((), "scored after each epoch; `val`, else the first, picks the best", splits)
    test_splits: tuple[str, ...] = key((), "scored at the end, with the best weights", splits)
    val_freq: int = key(1, "validate every n-th epoch, and after the last", integer, positive, "at least 1")
    save_freq: int = key(5, "keep every n-th epoch's checkpoint besides the newest; 0: none", integer)
    save_every_steps: int = key(
        0,
        "save within an epoch after every n-th optimizer step; 0: at its end only",
        integer,
        not_negative,
        "at least 0",
    )
    keep_checkpoints: int = key(
        1, "newest checkpoints to keep, besides the best and save_freq's", integer, positive, "at least 1"
    )
    save_last: bool = key(True, "keep the last epoch's checkpoint when the run is done", switch)
    log_freq: int = key(50, "iterations between log lines", integer, positive, "at least 1")
    early_stopping: int | None = key(
        None,
        "stop after this many validations without a better metric; 0 or absent: never",
        integer,
        not_negative,
        "at least 0",
    )
    disable_early_stopping: bool | None = key(
        None, "the research code's key: false means early_stopping: 3, true means 0", switch
    )
    resume_ckpt_path: str | None = key(
        None,
        "auto: go on with the newest run under output_dir, or begin one; a checkpoint: go on from it in a new folder; "
        "with evaluation, the checkpoint to score",
        text,
    )
    allow_config_change: tuple[str, ...] = key(
        (), "keys, or sections, in which a resumed run may differ from its checkpoint", key_names
    )
    max_bad_steps: int = key(
        10, "steps in a row without a finite loss and gradient that end the run", integer, positive, "at least 1"
    )
    on_bad_sample: str = key(
        "error",
        "a training picture that can't be read: error, or skip, which counts and logs it",
        choice("error", "skip"),
    )
    on_full_disk: str = key(
        "stop", "a checkpoint that finds no room on the disk: stop, or continue without it", choice("stop", "continue")
    )
    feature_cache: CacheSpec | None = key(  # noqa: RUF009  a frozen class, too
        None,
        "a folder that keeps what the frozen vision encoder makes of each picture, so that it is run once; or a "
        "mapping: `dir`, `dtype` (half; or float32: the same losses to the last bit), `augmentations` (views kept of "
        "each picture, where the image processor is random)",
        feature_cache,
    )
    tensorboard: bool | str = key("auto", "write TensorBoard scalars; auto: if it is installed", switch_or_auto)
    use_dist_eval_sampler: bool = key(True, "share evaluation among the processes", switch)

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

    max_iters: int | None = key(None, "iterations to train; needed for training", integer, positive, "at least 1")
    iters_per_inner_epoch: int | None = key(
        None,
        "iterations between two validations and checkpoints; needed for training",
        integer,
        positive,
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
