import random

import pytest

from lavis_peft.metrics.vqa import normalize, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The cases of https://visualqa.org/evaluation.html.
        ("Red", "red"),
        ("yes.", "yes"),
        ("2.5", "2.5"),
        ("two", "2"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("the dog", "dog"),
        ("a cat and an ape", "cat and ape"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("red/white", "red white"),
        ("t-shirt", "t shirt"),
        # Where a mark stands beside a space, VQA's code removes it everywhere.
        ("red, white", "red white"),
        ("x-ray - blue", "xray blue"),
        ("1,000 (one thousand)", "1000 1 thousand"),
        # What isn't in VQA's table stays, and so do words that only look like contractions.
        ("shed", "shed"),
        ("lets", "lets"),
        ("\n basil\tleaves\n", "basil leaves"),
        ("", ""),
        ("The", ""),
    ],
)
def test_the_documented_normal_form(text, expected):
    assert normalize(text) == expected


def answers(**counts):
    return [word for word, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("same", "expected"),
    # For each of ten people the others are asked; k agree: (k·min(1, (k−1)/3) + (10−k)·min(1, k/3)) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_how_right_an_answer_is(same, expected):
    assert vqa_accuracy("red", answers(red=same, blue=10 - same)) == pytest.approx(expected)


def test_the_peoples_answers_are_compared_as_they_stand_or_in_normal_form():
    people = answers(**{"The Dog": 5, "dog": 2, "cat": 3})
    assert vqa_accuracy("A dog.", people) == pytest.approx(0.6)
    assert vqa_accuracy("A dog.", people, normalize_answers=True) == 1.0


def test_an_empty_answer_is_wrong():
    assert vqa_accuracy("", answers(unanswerable=10)) == 0.0


# Words, marks and contractions that one of the rules is about.
WORDS = """
the a An one Two none ten zero red t-shirt 2:50 100,978 3.5 12. 7,5 yes/no dont don't couldnt've somebody'd let's shes
ow's'at y'alld've weve (left) [x] a_b 5+5=10 <b> @home `q` what? no! .5 ... Im Ive wed she'dve café; “q” it’s 1,2,3 -5
"""
PIECES = [gap + word for word in WORDS.split() for gap in (" ", " ", ", ", "-", "", "\n")]


def random_texts(count):
    draw = random.Random(0)
    letters = list("ab1,.-' ?!()/\n\t;:the")
    for number in range(count):
        pieces, most = (PIECES, 6) if number % 3 else (letters, 14)
        yield "".join(draw.choices(pieces, k=draw.randint(0, most)))


@pytest.fixture(scope="module")
def lavis_vqa():
    import lavis_peft

    lavis_peft.register()
    from lavis.common.vqa_tools.vqa_eval import VQAEval

    return VQAEval


def test_the_normal_form_is_that_of_vqas_own_code(lavis_vqa):
    """LAVIS ships VQA's evaluation, whose normal form VizWiz's code copied."""
    tool, changed = lavis_vqa(), 0
    for text in [*random_texts(20_000), *tool.contractions, *tool.manualMap]:
        spaced = text.replace("\n", " ").replace("\t", " ").strip()
        expected = tool.processDigitArticle(tool.processPunctuation(spaced))
        assert normalize(text) == expected, repr(text)
        changed += expected != text
    assert changed > 10_000, "texts that nothing happens to show nothing"


KNOWN = ["red", "blue", "2", "don't know", "unanswerable"]


class _Annotations:
    """What VQA's code reads, for one question."""

    def __init__(self, answer):
        self.qa = {1: answer}

    def getQuesIds(self):
        return [1]


def test_the_accuracy_is_that_of_vqas_own_code(lavis_vqa, capsys):
    """On answers in normal form, as VQA's code removes punctuation from people's answers, and VizWiz's doesn't."""
    draw, seen = random.Random(1), set()
    for _ in range(400):
        people = draw.choices(KNOWN[: draw.randint(1, len(KNOWN))], k=10)
        said = draw.choice(["Red.", "the blue", "two", "dont know", "unanswerable", "green"])
        truth = {
            "answers": [{"answer": answer, "answer_id": number} for number, answer in enumerate(people)],
            "question_type": "none",
            "answer_type": "other",
        }
        tool = lavis_vqa(_Annotations(truth), _Annotations({"answer": said}), n=6)
        tool.evaluate()
        expected = tool.accuracy["overall"]
        assert 100 * vqa_accuracy(said, people) == pytest.approx(expected, abs=1e-5)
        seen.add(round(expected))
    assert seen == {0, 30, 60, 90, 100}
