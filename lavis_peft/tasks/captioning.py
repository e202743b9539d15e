"""The task `captioning_peft`: generate captions, and score them by CIDEr, BLEU and ROUGE-L."""

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lavis.common.dist_utils import is_main_process

from lavis_peft.metrics.captions import CaptionScorer
from lavis_peft.tasks.generation import GeneratingTask, captions, count_empty
from lavis_peft.tasks.options import CaptionOptions
from lavis_peft.tasks.results import Row
from lavis_peft.tasks.rows import answers_of, row

_log = logging.getLogger(__name__)


class CaptioningTask(GeneratingTask):
    """Evaluates generated captions against people's captions, which are a record's answers."""

    options_type = CaptionOptions

    @cached_property
    def scorer(self) -> CaptionScorer:
        """Computes the scores.

        Raises:
            MissingExtra: pycocoevalcap isn't installed.
            UserError: A score was asked for whose tools aren't there.
        """
        return CaptionScorer(self.options.caption_metrics)

    def build_datasets(self, cfg: Any) -> dict[str, dict[str, Any]]:
        """As every task, once it is sure that what is asked for can be scored.

        Raises:
            MissingExtra: pycocoevalcap isn't installed.
            UserError: A score was asked for whose tools aren't there.
        """
        if cfg.run_cfg.get("valid_splits") or cfg.run_cfg.get("test_splits"):
            scorer = self.scorer
            if is_main_process() and scorer.why_plain:
                _log.warning(
                    "captions are tokenized by a plain rule, as %s: scores differ a little from published ones (which "
                    "the metrics mark as tokenizer: ptb)",
                    scorer.why_plain,
                )
        return super().build_datasets(cfg)

    def texts(self, model: Any, samples: Mapping[str, Any]) -> list[str]:
        """Captions."""
        return captions(model, samples, self.options)

    def row(self, samples: Mapping[str, Any], position: int, text: str) -> Row:
        """Picture, people's captions and prediction; `score` adds the caption's CIDEr."""
        return {**row(samples, position), "answers": answers_of(samples, position), "prediction": text}

    def score(self, rows: list[Row]) -> dict[str, Any]:
        """CIDEr, BLEU-1 to 4, ROUGE-L and what else was asked for, all times 100; ``agg_metrics`` is CIDEr.

        Besides, ``tokenizer``: ``ptb`` or ``plain``; ``total`` captions; and how many of them are empty.
        """
        found, each = self.scorer.score([one["prediction"] for one in rows], [one["answers"] for one in rows])
        for one, cider in zip(rows, each, strict=True):
            one["CIDEr"] = cider
        return {"agg_metrics": found["CIDEr"], **found, "total": len(rows), "empty": count_empty(rows)}

    def headline(self, found: Mapping[str, Any]) -> str:
        """CIDEr."""
        return f"CIDEr {found['CIDEr']:.2f}"
