"""Annotation records as the research code reads them, in the form of the plugin's.

Its preprocessing scripts wrote ScienceQA's and IconQA's; VizWiz's are the official ones, Flickr30k's are LAVIS's. A
record in any other form, as `prepare` writes it, is left as it is: what is wrong with it is the reader's to say.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Raw = Mapping[str, Any]

_LETTERED = re.compile(r"\(([a-z])\) (.*)", re.DOTALL)
_VIZWIZ = re.compile(r"VizWiz_(train|val|test)_")


def scienceqa(raw: Raw) -> Raw:
    """Its answer is ``(b) choice``; here it is the choice."""
    choices, found = raw.get("choices"), _LETTERED.fullmatch(str(raw.get("answer")))
    if found is None or not isinstance(choices, list) or raw["answer"] in choices:
        return raw
    index = ord(found[1]) - ord("a")
    if index >= len(choices) or choices[index] != found[2]:
        return raw
    # A choice that is listed twice is offered once, as `prepare` has it.
    return {**raw, "answer": choices[index], "choices": list(dict.fromkeys(choices))}


def iconqa(raw: Raw) -> Raw:
    """Its record is IconQA's own problem: the answer is the choice's number, the picture is in the problem's folder."""
    choices, number = raw.get("choices"), raw.get("answer")
    if not isinstance(choices, list) or not isinstance(number, int) or isinstance(number, bool):
        return raw
    if not 0 <= number < len(choices) or "id" not in raw or "split" not in raw:
        return raw
    return {
        "image": f"{raw['split']}/choose_txt/{raw['id']}/image.png",
        "question": raw.get("question"),
        "choices": list(dict.fromkeys(choices)),
        "answer": choices[number],
        "question_id": str(raw["id"]),
        **({"groups": {"grade": raw["grade"]}} if isinstance(raw.get("grade"), str) else {}),
    }


def vizwiz(raw: Raw) -> Raw:
    """Its ten answers are mappings of text and confidence; its pictures are in a folder for each split."""
    answers, split = raw.get("answers"), _VIZWIZ.match(str(raw.get("image")))
    if not isinstance(answers, list) or split is None:
        return raw
    texts = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in answers]
    image = raw["image"]
    return {"image": f"{split[1]}/{image}", "question": raw.get("question"), "answer": texts, "question_id": image}


def flickr30k(raw: Raw) -> Raw:
    """Its captions are the answers: one in a record of the training split, five in the others."""
    if "caption" not in raw:
        return raw
    return {"image": raw.get("image"), "question": "", "answer": raw["caption"]}


#: The plugin's datasets and what makes a record of the research code one of theirs.
READERS: dict[str, Callable[[Raw], Raw]] = {
    "scienceqa_peft": scienceqa,
    "iconqa_peft": iconqa,
    "vizwiz_peft": vizwiz,
    "flickr30k_peft": flickr30k,
}
