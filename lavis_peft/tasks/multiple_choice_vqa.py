"""The task `multiple_choice_vqa`: rank each question's own choices, at any batch size."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lavis.common.dist_utils import is_main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask
from tqdm import tqdm

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError, DataError
from lavis_peft.tasks.options import TaskOptions, parse_options
from lavis_peft.tasks.results import complete, gather, metrics, same_text, write_json
from lavis_peft.tasks.splits import check_splits

_log = logging.getLogger(__name__)


class MultipleChoiceVqaTask(BaseTask):
    """Trains on prompt and target; evaluates by the likelihood of each of a question's own choices.

    ``train_step`` is LAVIS's: what it returns is what the inner loop of the same LAVIS expects (the loss in 1.0.2,
    the loss and a mapping in LAVIS main).

    Args:
        options: What to do with open questions, and how to generate.
    """

    #: Keys of the `run` section that this task reads; the runner lets them pass.
    run_keys = tuple(option.name for option in fields(TaskOptions))

    def __init__(self, options: TaskOptions | None = None) -> None:
        super().__init__()
        self.options = options or TaskOptions()
        self._expected: list[str] | None = None

    @classmethod
    def setup_task(cls, cfg: Any = None, **_: Any) -> "MultipleChoiceVqaTask":
        """Build from a LAVIS ``Config``.

        Raises:
            ConfigError: A wrong value among the task's keys in ``run``.
        """
        return cls(parse_options(cfg.run_cfg) if cfg is not None else None)

    def build_datasets(self, cfg: Any) -> dict[str, dict[str, Any]]:
        """LAVIS's mapping of datasets by name and split, checked against the splits that the run names.

        Raises:
            ConfigError: An unknown dataset, or a split that no dataset has.
            DataError: Annotations or pictures that can't be used, or open questions in a split to be ranked.
        """
        known = registry.list_datasets()
        unknown = [name for name in cfg.datasets_cfg if name not in known]
        if unknown:
            raise ConfigError([f"datasets.{name}: unknown; known: {listing(known)}" for name in unknown])
        datasets = super().build_datasets(cfg)
        run = cfg.run_cfg
        evaluated = check_splits(run, datasets)
        if self.options.open_ended == "error":
            _refuse_open_questions(datasets, evaluated)
        for by_split in datasets.values():
            for dataset in by_split.values():
                if hasattr(dataset, "set_epoch"):
                    dataset.set_epoch(0, seed=int(run.get("seed", 42)))
        return datasets

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Note which questions must be answered."""
        super().before_evaluation(model, dataset, **kwargs)
        self._expected = dataset.question_ids() if hasattr(dataset, "question_ids") else None

    @torch.no_grad()
    def evaluation(
        self, model: Any, data_loader: Iterable[Mapping[str, Any]], cuda_enabled: bool | None = None
    ) -> list[dict[str, Any]]:
        """Answer every question of this process's share of a split.

        Args:
            model: Has ``device`` and ``score_candidates``.
            data_loader: Gives batches.
            cuda_enabled: LAVIS's argument, not needed: batches go where the model is.

        Returns:
            One row a question, as `valid_step` makes them.
        """
        rows: list[dict[str, Any]] = []
        # disable=None keeps quiet where standard error is no terminal.
        quiet = None if is_main_process() else True
        for samples in tqdm(data_loader, desc="evaluation", unit="batch", disable=quiet, leave=False):
            here = {key: _to(value, model.device) for key, value in samples.items()}
            rows.extend(self.valid_step(model=model, samples=here))
        return rows

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Answer a batch, each question among its own candidates.

        Args:
            model: Has ``score_candidates(image, prompts, candidates)``; lower scores are better.
            samples: A collated batch. ``candidates``, the choices as the model was trained to write them, may be
                absent; then ``choices`` are ranked as they are.

        Returns:
            One row a question: id, type, prediction, answers, whether it is correct, choices and their scores.

        Raises:
            DataError: A question without choices, unless ``run.open_ended: generate``; scores that aren't numbers.
        """
        choices = samples["choices"]
        closed = [index for index, found in enumerate(choices) if found]
        opened = [index for index, found in enumerate(choices) if not found]
        if opened and self.options.open_ended == "error":
            raise DataError(f"question {samples['question_id'][opened[0]]!r} has no choices; see run.open_ended")
        rows = self._rank(model, samples, closed) | self._generate(model, samples, opened)
        return [rows[index] for index in range(len(choices))]

    def _rank(self, model: Any, samples: Mapping[str, Any], picked: Sequence[int]) -> dict[int, dict[str, Any]]:
        if not picked:
            return {}
        part = _pick(samples, picked)
        candidates = part.get("candidates", part["choices"])
        scores = model.score_candidates(part["image"], part["text_input"], candidates)
        # One copy from the GPU for the batch, not one a question.
        flat = torch.cat(list(scores)).cpu().split([len(own) for own in candidates])
        rows = {}
        for position, index in enumerate(picked):
            row_scores = flat[position].tolist()
            if not all(math.isfinite(score) for score in row_scores):
                raise DataError(
                    f"question {part['question_id'][position]!r}: the model's scores aren't numbers; its weights have "
                    "diverged in training (a lower run.init_lr, or run.amp: false, may help)"
                )
            best = min(range(len(row_scores)), key=row_scores.__getitem__)
            prediction = part["choices"][position][best]
            correct = prediction in _answers(part, position)
            rows[index] = _row(part, position, prediction, correct, row_scores)
        return rows

    def _generate(self, model: Any, samples: Mapping[str, Any], picked: Sequence[int]) -> dict[int, dict[str, Any]]:
        if not picked:
            return {}
        part = _pick(samples, picked)
        options = self.options
        texts = model.predict_answers(
            {"image": part["image"], "text_input": part["text_input"]},
            num_beams=options.num_beams,
            inference_method="generate",
            max_len=options.max_len,
            min_len=options.min_len,
        )
        return {
            index: _row(part, position, text, same_text(text, _answers(part, position)), [])
            for position, (index, text) in enumerate(zip(picked, texts, strict=True))
        }

    def after_evaluation(
        self, val_result: Sequence[Mapping[str, Any]], split_name: str, epoch: int | str, **_: Any
    ) -> dict[str, Any]:
        """Merge the processes' answers, check that none is missing, write the predictions, count.

        The predictions go to ``result/{split}_{epoch}.json`` in the run's folder.

        Args:
            val_result: This process's rows.
            split_name: The split.
            epoch: The epoch, or ``best``.

        Returns:
            The metrics, the same on every process: ``accuracy`` and ``agg_metrics`` in percent, ``accuracy_by_type`` in
            percent for each question type, ``total`` questions.

        Raises:
            DataError: A question was answered never, or more often than the samplers' padding explains.
        """
        shares = gather(list(val_result))
        rows = complete(shares, self._expected, split_name)
        found = metrics(rows)
        result_dir = registry.get_path("result_dir")
        if is_main_process() and result_dir is not None:
            path = Path(result_dir) / f"{split_name}_{epoch}.json"
            write_json(path, rows)
            _log.info("%s: accuracy %.2f %% of %d questions; %s", split_name, found["accuracy"], found["total"], path)
        return found


def _refuse_open_questions(datasets: Mapping[str, Mapping[str, Any]], splits: Iterable[str]) -> None:
    for name, by_split in datasets.items():
        for split in splits:
            records = getattr(by_split.get(split), "records", ())
            opened = [record for record in records if not record.choices]
            if opened:
                raise DataError(
                    f"{opened[0].where}: no 'choices', so the task multiple_choice_vqa can't rank them "
                    f"({len(opened)} of the {len(records)} questions of split {split}); give each record `choices`, "
                    f"set datasets.{name}.choices, or set run.open_ended: generate"
                )


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if torch.is_tensor(value) else value


def _pick(samples: Mapping[str, Any], picked: Sequence[int]) -> dict[str, Any]:
    """The chosen samples of a batch."""
    picked = list(picked)
    lists = {key: [value[index] for index in picked] for key, value in samples.items() if isinstance(value, list)}
    return {**lists, "image": samples["image"][picked]}


def _answers(part: Mapping[str, Any], position: int) -> list[str]:
    return part["answers"][position] if "answers" in part else [part["answer"][position]]


def _row(
    part: Mapping[str, Any], position: int, prediction: str, correct: bool, scores: Sequence[float]
) -> dict[str, Any]:
    keys = ("question_id", "question_type", "image_id", "answer", "choices")
    row = {key: part[key][position] for key in keys if key in part}
    return {**row, "prediction": prediction, "correct": correct, "scores": list(scores)}
