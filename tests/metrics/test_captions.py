import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lavis_peft.errors import DataError, MissingExtra, UserError
from lavis_peft.metrics.captions import CaptionScorer

REFERENCES = [
    ["a dog runs on the grass", "a brown dog is running", "the dog runs"],
    ["two men play chess in a park", "men playing chess"],
    ["a child 's red ball", "a red ball on the floor", "the ball is red"],
]
CAPTIONS = ["a dog runs on the grass", "two men play football", "a red ball"]


def cider(captions, references):
    """CIDEr as in its paper (Vedantam et al. 2015) with the later Gaussian penalty, written out for words that need no
    tokenizer."""

    def grams(text, size):
        words = text.split()
        return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))

    def vector(text, size):
        rare = Counter(gram for own in references for gram in {g for ref in own for g in grams(ref, size)})
        return {g: n * math.log(len(references) / max(1, rare[g])) for g, n in grams(text, size).items()}

    scores = []
    for caption, own in zip(captions, references, strict=True):
        total = 0.0
        for size in range(1, 5):
            for reference in own:
                a, b = vector(caption, size), vector(reference, size)
                dot = sum(min(a[g], b.get(g, 0.0)) * b.get(g, 0.0) for g in a)
                norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
                # pycocoevalcap counts a text's length in pairs of words.
                delta = sum(grams(caption, 2).values()) - sum(grams(reference, 2).values())
                total += (dot / norms if norms else 0.0) * math.exp(-(delta**2) / 72) / len(own)
        scores.append(10 * total / 4)
    return 100 * sum(scores) / len(scores), [100 * score for score in scores]


@pytest.fixture
def scorer(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return CaptionScorer()


def test_without_java_the_plain_rule_is_used_and_said(scorer):
    assert scorer.tokenizer == "plain" and "no program `java`" in scorer.why_plain
    found, _ = scorer.score(CAPTIONS, REFERENCES)
    assert found["tokenizer"] == "plain" and set(found) == {
        *("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "tokenizer")
    }


def test_cider_is_its_papers(scorer):
    found, each = scorer.score(CAPTIONS, REFERENCES)
    expected, expected_each = cider(CAPTIONS, REFERENCES)
    assert found["CIDEr"] == pytest.approx(expected) and each == pytest.approx(expected_each)
    assert expected > 50 and len({round(score) for score in each}) == 3


def test_bleu_and_rouge_by_hand(scorer, capfd):
    # 3 of 4 words and 2 of 3 pairs stand in the reference of the same length; so no brevity penalty.
    found, _ = scorer.score(["a red ball rolls"], [["a red ball lies"]])
    assert found["Bleu_1"] == pytest.approx(75) and found["Bleu_2"] == pytest.approx(100 * math.sqrt(3 / 4 * 2 / 3))
    assert found["ROUGE_L"] == pytest.approx(75)
    assert capfd.readouterr().out == "", "standard output belongs to --json"


def test_case_and_punctuation_make_no_difference(scorer):
    loud = [text.upper().replace("'S", "'s").replace(" 's", "'s") + " ." for text in CAPTIONS]
    assert scorer.score(loud, REFERENCES) == scorer.score(CAPTIONS, REFERENCES)


def test_empty_captions_score_nothing(scorer):
    found, each = scorer.score(["", "", CAPTIONS[2]], REFERENCES)
    assert (
        each[:2] == [0.0, 0.0] and each[2] > 0 and all(math.isfinite(found[key]) for key in found if key != "tokenizer")
    )
    assert scorer.score(["", ""], REFERENCES[:2])[0]["CIDEr"] == 0.0
    assert scorer.score([], []) == ({"CIDEr": 0.0, "tokenizer": "plain"}, [])


def test_a_picture_without_captions(scorer):
    with pytest.raises(DataError, match=r"caption 1 has no reference captions \(1 have none\)"):
        scorer.score(CAPTIONS, [REFERENCES[0], [], REFERENCES[2]])


def test_scores_that_need_java(scorer):
    with pytest.raises(UserError, match="METEOR: Java is needed, and there is no program `java`"):
        CaptionScorer(["METEOR"])


def test_spice_needs_models_that_nothing_fetches(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("lavis_peft.metrics.captions._spice_models", lambda: Path("/nowhere/models.jar"))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    with pytest.raises(UserError, match="SPICE: the Stanford CoreNLP models are needed"):
        CaptionScorer(["SPICE"])


def test_without_the_library(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)

    class Nothing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "pycocoevalcap":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    with pytest.raises(MissingExtra, match=r"isn't installed: pip install 'lavis-peft\[captions\]'"):
        CaptionScorer()


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no program java")


@needs_java
def test_with_java_the_scores_are_pycocoevalcaps_own(capfd):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = ["A dog's (brown) tail, isn't it?", *CAPTIONS[1:]]
    gts = PTBTokenizer().tokenize({i: [{"caption": c} for c in own] for i, own in enumerate(REFERENCES)})
    res = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    found, each = CaptionScorer(["METEOR"]).score(captions, REFERENCES)
    bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
    expected = [Cider().compute_score(gts, res)[0], *bleu, Rouge().compute_score(gts, res)[0]]
    assert list(found.values())[:6] == pytest.approx([100 * value for value in expected])
    assert each == pytest.approx([100 * value for value in Cider().compute_score(gts, res)[1]])
    assert found["tokenizer"] == "ptb" and 0 < found["METEOR"] < 100


def test_a_java_that_does_not_run(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'no such jvm' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    scorer = CaptionScorer()
    assert scorer.tokenizer == "plain" and "no such jvm" in scorer.why_plain
    scorer.__dict__["why_plain"] = ""  # as where Java breaks down after the first trial
    with pytest.raises(UserError, match=r"failed to tokenize them: exit code 3"):
        scorer.score(CAPTIONS, REFERENCES)


def test_a_path_without_any_program():
    """In a process of its own: nothing may look for Java at another place."""
    pytest.importorskip("pycocoevalcap")
    code = (
        "import json; from lavis_peft.metrics.captions import CaptionScorer; "
        f"print(json.dumps(CaptionScorer().score({CAPTIONS!r}, {REFERENCES!r})[0]))"
    )
    environment = {**os.environ, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokenizer"] == "plain" and found["CIDEr"] == pytest.approx(cider(CAPTIONS, REFERENCES)[0])
