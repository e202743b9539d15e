"""What the plugin's tasks share: building the data, walking through a split, and gathering what was answered."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from lavis.common.dist_utils import is_main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask
from omegaconf import OmegaConf
from tqdm import tqdm

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError
from lavis_peft.tasks.options import GenerationOptions, parse_options
from lavis_peft.tasks.results import Row, complete, gather, on_main, write_json
from lavis_peft.tasks.rows import to_device
from lavis_peft.tasks.splits import check_joined, check_splits

_log = logging.getLogger(__name__)

#: Ends a sentence about results that aren't numbers.
DIVERGED = "its weights have diverged in training (a lower run.init_lr, or run.amp: false, may help)"


class InstructTask(BaseTask):
    """Trains on prompt and target; a subclass says how a batch is answered and how answers are scored.

    ``train_step`` is LAVIS's: what it returns is what the inner loop of the same LAVIS expects (the loss in 1.0.2,
    the loss and a mapping in LAVIS main).

    Args:
        options: The task's keys of the `run` section; their defaults if left out.
    """

    #: The class of the options.
    options_type: ClassVar[type[GenerationOptions]] = GenerationOptions
    #: Keys of the `run` section that the task reads; the runner lets them pass.
    run_keys: ClassVar[tuple[str, ...]] = ()

    options: Any

    def __init__(self, options: GenerationOptions | None = None) -> None:
        super().__init__()
        self.options = options or self.options_type()
        self._expected: list[str] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.run_keys = tuple(option.name for option in fields(cls.options_type))

    @classmethod
    def setup_task(cls, cfg: Any = None, **_: Any) -> "InstructTask":
        """Build from a LAVIS ``Config``.

        Raises:
            ConfigError: Every wrong value among the task's keys in ``run``.
        """
        if cfg is None:
            return cls()
        run = OmegaConf.to_container(cfg.run_cfg) if OmegaConf.is_config(cfg.run_cfg) else cfg.run_cfg
        return cls(parse_options(run, cls.options_type))

    # What a task says

    def check_records(self, name: str, split: str, records: Sequence[Any]) -> None:
        """See that the questions of a split to be evaluated can be scored.

        Args:
            name: The dataset.
            split: Its split.
            records: The questions; none where the dataset doesn't say.

        Raises:
            DataError: They can't.
        """

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """Answer a batch, one row a question."""
        raise NotImplementedError

    def score(self, rows: list[Row]) -> dict[str, Any]:
        """The metrics of a split; ``agg_metrics`` picks the best epoch. May add to the rows."""
        raise NotImplementedError

    def headline(self, found: Mapping[str, Any]) -> str:
        """What the log says of a split's metrics."""
        raise NotImplementedError

    # LAVIS's interface

    def build_datasets(self, cfg: Any) -> dict[str, dict[str, Any]]:
        """LAVIS's mapping of datasets by name and split, checked against the splits that the run names.

        Raises:
            ConfigError: An unknown dataset, or a split that no dataset has.
            DataError: Annotations or pictures that can't be used, or questions in an evaluated split that can't be
                scored.
        """
        known = registry.list_datasets()
        unknown = [name for name in cfg.datasets_cfg if name not in known]
        if unknown:
            raise ConfigError([f"datasets.{name}: unknown; known: {listing(known)}" for name in unknown])
        datasets = super().build_datasets(cfg)
        run = cfg.run_cfg
        evaluated = check_splits(run, datasets)
        check_joined(datasets)
        for name, by_split in datasets.items():
            for split in evaluated:
                self.check_records(name, split, getattr(by_split.get(split), "records", ()))
            for dataset in by_split.values():
                if hasattr(dataset, "set_epoch"):
                    dataset.set_epoch(0, seed=int(run.get("seed", 42)))
        return datasets

    def build_model(self, cfg: Any) -> Any:
        """LAVIS's, with the vision encoder's weights left unread where `run.feature_cache` may make them needless."""
        cls = registry.get_model_class(cfg.model_cfg.arch)
        if cfg.run_cfg.get("feature_cache") is None or not hasattr(cls, "encode_vision"):
            return super().build_model(cfg)
        return cls.from_config(cfg.model_cfg, vision_later=True)

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Note which questions must be answered."""
        super().before_evaluation(model, dataset, **kwargs)
        self._expected = dataset.question_ids() if hasattr(dataset, "question_ids") else None

    @torch.no_grad()
    def evaluation(
        self, model: Any, data_loader: Iterable[Mapping[str, Any]], cuda_enabled: bool | None = None
    ) -> list[Row]:
        """Answer every question of this process's share of a split.

        Args:
            model: Has ``device``, and what `valid_step` needs.
            data_loader: Gives batches.
            cuda_enabled: LAVIS's argument, not needed: batches go where the model is.

        Returns:
            One row a question, as `valid_step` makes them.
        """
        rows: list[Row] = []
        # disable=None keeps quiet where standard error is no terminal.
        quiet = None if is_main_process() else True
        for samples in tqdm(data_loader, desc="evaluation", unit="batch", disable=quiet, leave=False):
            rows.extend(self.valid_step(model=model, samples=to_device(samples, model.device)))
        return rows

    def after_evaluation(
        self, val_result: Sequence[Row], split_name: str, epoch: int | str, **_: Any
    ) -> dict[str, Any]:
        """Merge the processes' answers, check that none is missing, write the predictions, score them.

        The predictions go to ``result/{split}_{epoch}.json`` in the run's folder.

        Args:
            val_result: This process's rows.
            split_name: The split.
            epoch: The epoch, or ``best``.

        Returns:
            The metrics, as the task's ``score`` gives them, the same on every process.

        Raises:
            DataError: A question was answered never, or more often than the samplers' padding explains.
        """
        rows = complete(gather(list(val_result)), self._expected, split_name)
        return on_main(lambda: self._report(rows, split_name, epoch))

    def _report(self, rows: list[Row], split: str, epoch: int | str) -> dict[str, Any]:
        folder = registry.get_path("result_dir")
        path = None if folder is None else Path(folder) / f"{split}_{epoch}.json"
        try:
            found = self.score(rows)
        finally:  # hours of answering aren't lost because a score can't be computed
            if path is not None:
                write_json(path, rows)
        _log.info("%s: %s of %d questions; %s", split, self.headline(found), len(rows), path or "not written")
        return found
