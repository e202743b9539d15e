"""Scores of captions: CIDEr, BLEU and ROUGE-L, and with Java METEOR and SPICE, by pycocoevalcap."""

import contextlib
import io
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_peft.errors import DataError, MissingExtra, UserError
from lavis_peft.metrics.words import TokenizerFailed, penn_treebank_words, plain_words

#: Scores that Java computes.
JAVA_METRICS = ("METEOR", "SPICE")
_BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
_SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"

#: Tokenized texts by the number of their picture, as pycocoevalcap takes them.
_Texts = Mapping[int, list[str]]


class CaptionScorer:
    """Scores captions against the captions that people wrote.

    Args:
        extra: Further scores, of `JAVA_METRICS`.

    Raises:
        MissingExtra: pycocoevalcap isn't installed, or can't be imported.
        UserError: One of ``extra`` needs what isn't there.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        _check_library()
        self.extra = tuple(extra)
        self.java = shutil.which("java")
        problems = []
        if self.extra and self.java is None:
            problems.append(f"{' and '.join(self.extra)}: Java is needed, and there is no program `java` on the PATH")
        if "SPICE" in self.extra and not _spice_models().exists():
            # Left alone, pycocoevalcap would fetch them in the middle of the run.
            problems.append(
                "SPICE: the Stanford CoreNLP models are needed, which pycocoevalcap doesn't bring; fetch them once: "
                'python -c "from pycocoevalcap.spice import get_stanford_models as g; g.get_stanford_models()"'
            )
        if problems:
            raise UserError("; ".join(problems))

    @cached_property
    def why_plain(self) -> str:
        """Why captions are tokenized by the plain rule; empty where they are not."""
        if self.java is None:
            return "there is no program `java` on the PATH"
        try:
            penn_treebank_words(["A caption ."], self.java)
        except TokenizerFailed as error:
            return f"{self.java} can't run the tokenizer: {error}"
        return ""

    @property
    def tokenizer(self) -> str:
        """``ptb``, the Penn Treebank's rule that published scores use, or ``plain`` where Java can't run it."""
        return "plain" if self.why_plain else "ptb"

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict[str, Any], list[float]]:
        """Score all captions of a split together: CIDEr weighs words by how rare they are in its references.

        Args:
            captions: One for each picture; may be empty texts.
            references: The people's captions of each picture.

        Returns:
            Scores by name, times 100, and under ``tokenizer`` what made words of the texts; and each caption's CIDEr,
            times 100.

        Raises:
            DataError: A picture without references.
            UserError: Java failed, or a score isn't a number.
        """
        bare = [number for number, own in enumerate(references) if not own]
        if bare:
            raise DataError(f"caption {bare[0]} has no reference captions ({len(bare)} have none)")
        if not captions:
            return {"CIDEr": 0.0, "tokenizer": self.tokenizer}, []
        words = iter(self._words([*captions, *(text for own in references for text in own)]))
        said = {number: [next(words)] for number in range(len(captions))}
        truth = {number: [next(words) for _ in own] for number, own in enumerate(references)}
        found, each = _python_scores(truth, said)
        found |= {name: _java_score(name, truth, said) for name in self.extra}
        scores = {name: 100.0 * float(value) for name, value in found.items()}
        wrong = [name for name, value in scores.items() if not math.isfinite(value)]
        if wrong:
            raise UserError(f"{', '.join(wrong)} of {len(captions)} captions came out as no number")
        return {**scores, "tokenizer": self.tokenizer}, [100.0 * float(value) for value in each]

    def _words(self, texts: Sequence[str]) -> list[str]:
        if self.why_plain:
            return [plain_words(text) for text in texts]
        try:
            return penn_treebank_words(texts, str(self.java))
        except TokenizerFailed as error:
            # Not the plain rule after all: the scores of two epochs must be comparable.
            raise UserError(f"captions can't be scored: {self.java} failed to tokenize them: {error}") from error


def _check_library() -> None:
    try:
        import pycocoevalcap.bleu.bleu
        import pycocoevalcap.cider.cider
        import pycocoevalcap.rouge.rouge
        import pycocoevalcap.tokenizer.ptbtokenizer  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "pycocoevalcap"
        state = "isn't installed" if absent else f"can't be imported ({error})"
        raise MissingExtra(
            f"captions are scored by pycocoevalcap, which {state}: pip install 'lavis-peft[captions]'"
        ) from error


def _spice_models() -> Path:
    import pycocoevalcap.spice

    return Path(pycocoevalcap.spice.__path__[0]) / "lib" / _SPICE_MODELS


def _python_scores(truth: _Texts, said: _Texts) -> tuple[dict[str, float], Sequence[float]]:
    """The scores that need no Java, and each caption's CIDEr."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    cider, each = Cider().compute_score(truth, said)
    with contextlib.redirect_stdout(io.StringIO()):  # BLEU prints its intermediate figures
        bleu, _ = Bleu(len(_BLEU)).compute_score(truth, said)
    rouge, _ = Rouge().compute_score(truth, said)
    return {"CIDEr": cider, **dict(zip(_BLEU, bleu, strict=True)), "ROUGE_L": rouge}, each


def _java_score(name: str, truth: _Texts, said: _Texts) -> float:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if name == "METEOR":
                from pycocoevalcap.meteor.meteor import Meteor

                return Meteor().compute_score(truth, said)[0]
            from pycocoevalcap.spice.spice import Spice

            return Spice().compute_score(truth, said)[0]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(f"{name} can't be computed; Java failed: {error}") from error
