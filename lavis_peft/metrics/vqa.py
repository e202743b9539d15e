"""The VQA accuracy of VizWiz, as its evaluation code computes it.

The rule is that of VQA (https://visualqa.org/evaluation.html): an answer is right to the degree that people gave it,
three of ten being enough, and the degree is averaged over all ways to leave one person out. VizWiz's code brings the
prediction into VQA's normal form and compares it with the annotators' answers as they stand.

Where that code slips, this follows VQA's: copies of it in circulation hold typographic apostrophes in most of their
contractions, so that ``dont`` becomes a word that nobody writes; here they are plain. Both strip at most 32 full stops
from a text (a flag given in the place of a count); here all of them go.
"""

import re
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}

#: Marks that are removed or give way to a space. Not the apostrophe (girl's, girls) and not the colon (2:50).
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")

# The contractions that VQA knows, by what follows the apostrophe's word; "she'd" is absent as "shed" is a word.
_ENDINGS = {
    "n't": "ai are ca could did do does had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
}
_OTHERS = ("ma'am", "o'clock", "'twas", "y'all", "'ow's'at")


def _one_apostrophe_short() -> dict[str, str]:
    words = [stem + ending for ending, stems in _ENDINGS.items() for stem in stems.split()]
    short = {
        word[:place] + word[place + 1 :]: word
        for word in (*words, *_OTHERS)
        for place, letter in enumerate(word)
        if letter == "'"
    }
    # VQA's table has this one the wrong way round.
    return short | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _one_apostrophe_short()


def normalize(text: str) -> str:
    """An answer in VQA's normal form.

    Lower case; number words up to ten as digits; no articles; a contraction that lacks an apostrophe gets it; full
    stops only before digits; other marks removed, or replaced by a space where they join two words.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_DIGITS.get(word, word) for word in _unpunctuated(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _unpunctuated(text: str) -> str:
    # One comma within a number and every mark of the text is removed, rather than replaced: VQA's rule, for all marks.
    joined = _DIGIT_COMMA.search(text) is not None
    removed = {mark for mark in _MARKS if joined or f"{mark} " in text or f" {mark}" in text}
    table = str.maketrans({mark: "" if mark in removed else " " for mark in _MARKS})
    return _FULL_STOP.sub("", text.translate(table))


def vqa_accuracy(prediction: str, answers: Sequence[str], normalize_answers: bool = False) -> float:
    """How right a prediction is, by the answers of several people.

    Args:
        prediction: What the model said.
        answers: What each person said, repeats included; VizWiz has ten.
        normalize_answers: Bring the people's answers into normal form too, as VQA's documentation says. VizWiz's code
            doesn't.

    Returns:
        0 to 1: for each person, a third for each of the *other* people who gave this answer, at most 1; averaged.
    """
    given = normalize(prediction)
    count = len(answers)
    same = sum((normalize(answer) if normalize_answers else answer) == given for answer in answers)
    if not same:
        return 0.0
    return (same * min(1.0, (same - 1) / 3) + (count - same) * min(1.0, same / 3)) / count
