"""From checkpoints to a written combination. This module imports LAVIS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from omegaconf import OmegaConf
from tqdm import tqdm

from lavis_peft.combine.candidate import Candidate, Settings, adapters_of, combine, layer_names, state_of
from lavis_peft.combine.inputs import PARTS, Input, Updates, prefixes, read_inputs, updates
from lavis_peft.errors import ConfigError
from lavis_peft.models.incoming import Incoming, write_checkpoint
from lavis_peft.runners.config import model_problems, model_section
from lavis_peft.runners.config_file import read_run_file

_OF_THE_TUNED = ("adapters", "finetuned", "load_finetuned")


@dataclass(frozen=True)
class Job:
    """Adapters to combine, and the model that they are of.

    Args:
        inputs: The checkpoints.
        changes: What each of them changes.
        cls: The model's class.
        section: Its `model` section, defaults filled in, without adapters.
        run: A run config to write beside the result; only its `model` section may be there.
    """

    inputs: Sequence[Input]
    changes: Sequence[Updates]
    cls: Any
    section: Mapping[str, Any] = field(repr=False)
    run: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, sources: Sequence[str], cfg_path: str | None, evaluate: str | None, options: list[str]) -> "Job":
        """Read checkpoints, and the section of their model.

        Args:
            sources: The checkpoints.
            cfg_path: A run config of the model.
            evaluate: The run config that candidates are scored by; says the model where ``cfg_path`` doesn't.
            options: Overrides of both.

        Raises:
            ConfigError: With everything that is wrong with checkpoints and configs.
            CheckpointError: A checkpoint doesn't fit the model.
        """
        problems, inputs, run = [], [], None
        try:
            inputs = read_inputs(sources)
        except ConfigError as error:
            problems += error.problems
        for path in dict.fromkeys(each for each in (evaluate, cfg_path) if each):
            try:
                run, _ = read_run_file(path, options)
                found = [f"{path}: {problem}" for problem in model_problems(run.model)]
                problems += found or [p for each in inputs[:1] for p in _of_another_model(run, each, path)]
            except ConfigError as error:
                problems += [str(error)]
        if problems:
            raise ConfigError(problems)
        first = inputs[0]
        run = OmegaConf.to_container(run, resolve=True) if run is not None else dict(first.run)
        own = run.get("model") or {"arch": first.arch, "model_type": first.model_type}
        section = OmegaConf.to_container(model_section(OmegaConf.create({"model": own})), resolve=True)
        section = {key: value for key, value in section.items() if key not in _OF_THE_TUNED}
        model_cls = registry.get_model_class(first.arch)
        changes = [
            updates(each, model_cls.on_meta({**section, "adapters": each.adapters.as_dict()})) for each in inputs
        ]
        return cls(inputs, changes, model_cls, section, run)

    def candidates(self, settings: Sequence[Settings]) -> list[Candidate]:
        """A combination for each of the settings."""
        layers = sum(len(layer_names(self.changes, part)) for part in PARTS)
        with tqdm(total=layers * len(settings), desc="combining", unit="layer", disable=None) as bar:
            return [combine(self.changes, each, bar.update) for each in settings]

    def alone(self, number: int) -> Candidate:
        """One of the adapters as it is."""
        shares = tuple(float(each == number) for each in range(len(self.inputs)))
        return combine(self.changes, Settings("svd", shares))

    def scored(self, candidates: Sequence[Candidate], held_out: Any) -> dict[str, Any]:
        """Score each adapter alone and each combination on the questions that a run config holds out.

        Args:
            candidates: The combinations.
            held_out: The questions and their task, a `runners.held_out.HeldOut`.

        Returns:
            ``split``, ``questions``, ``is_test`` (whether the config tests on that split), ``candidates`` with
            ``name``, ``ranks``, ``parameters``, ``score`` and ``metrics`` of each, and ``best``: the number of the best
            combination.
        """
        alone = [self.alone(number) for number in range(len(self.inputs))]
        names = [each.source for each in self.inputs] + [each.settings.method for each in candidates]
        every = [*alone, *candidates]
        ranks = {part: max((f.rank for each in every for f in each.layers[part].values()), default=0) for part in PARTS}
        # One model with room for all of them: loading base weights for each would take longer than scoring.
        model = self._model(every[0].padded(ranks))
        rows = []
        for name, each in zip(names, tqdm(every, desc="scoring", unit="candidate", disable=None), strict=True):
            model.load_state_dict(state_of(each.padded(ranks), prefixes(model)))
            metrics = held_out.score(model)
            low, high = each.ranks
            row = {"name": name, "ranks": [low, high], "parameters": each.parameters}
            rows.append({**row, "score": float(metrics["agg_metrics"]), "metrics": metrics})
        scores: list[Any] = [row["score"] for row in rows[len(alone) :]]
        return {
            "split": held_out.split,
            "is_test": held_out.is_test,
            "questions": held_out.questions,
            "candidates": rows,
            "best": scores.index(max(scores)),
        }

    def _model(self, candidate: Candidate) -> Any:
        adapters = adapters_of(candidate, self.inputs, self.cls.family)
        return self.cls.from_config({**self.section, "adapters": adapters.as_dict()})

    def write(self, candidate: Candidate, target: Path, scores: Mapping[str, Any]) -> list[Path]:
        """Write a combination as a checkpoint, and a run config that uses it beside it.

        Args:
            candidate: The combination.
            target: The checkpoint; the run config has its name and ends in ``.yaml``.
            scores: What `scored` returned, kept in the checkpoint; may be empty.

        Returns:
            The files.

        Raises:
            CheckpointError: It doesn't fit the model; nothing was written.
        """
        settings = candidate.settings
        adapters = adapters_of(candidate, self.inputs, self.cls.family)
        model = self.cls.on_meta({**self.section, "adapters": adapters.as_dict()})
        made_of: dict[str, Any] = {
            "sources": [each.source for each in self.inputs],
            "method": settings.method,
            "weights": list(settings.shares),
            "density": settings.density,
            "seed": settings.seed,
            "scores": [{key: row[key] for key in ("name", "score")} for row in scores.get("candidates", ())],
        }
        weights = ", ".join(f"{share:g}" for share in settings.shares)
        says = f"{', '.join(made_of['sources'])}: combined by {settings.method}, weights {weights}"
        result = Incoming(says, adapters, state_of(candidate, prefixes(model)))
        return write_checkpoint(self.cls, self.section, result, target, self.run, {"combined": made_of})


def _of_another_model(run: Any, first: Input, path: str) -> list[str]:
    return [
        f"{path}: model.{key}: {run.model.get(key)}, but {first.source} was trained with {getattr(first, key)}"
        for key in ("arch", "model_type")
        if run.model.get(key) != getattr(first, key)
    ]
