"""What a model is asked: prompts given on the command line, or a file of questions. No LAVIS import in here."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_peft.checks import suggestion
from lavis_peft.datasets.files import read_annotations
from lavis_peft.datasets.template import Template, letter, options
from lavis_peft.errors import DataError
from lavis_peft.predict.pictures import is_address

_FIELDS = ("image", "question", "prompt", "choices", "context", "question_id")
_SHOWN = 10


@dataclass(frozen=True)
class Asked:
    """One question about one picture.

    Args:
        image: The picture's path or address.
        image_id: The same as the user wrote it.
        prompt: What the model reads.
        choices: The answers to choose from; none where the answer is generated.
        candidates: The choices as the model was trained to write them.
        question_id: Names the question.
        where: File and line, for messages.
    """

    image: str
    image_id: str
    prompt: str
    choices: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    question_id: str = ""
    where: str = ""


@dataclass(frozen=True)
class Style:
    """How a run config writes questions and answers.

    Args:
        prompt: The template of the model's input.
        target: The template of its output.
        text: What becomes of a finished prompt.
    """

    prompt: Template
    target: Template
    text: Callable[[str], str]


def from_prompt(pictures: Sequence[str], prompt: str, choices: Sequence[str]) -> list[Asked]:
    """The same prompt for every picture, as it is; so are the choices.

    Args:
        pictures: Paths and addresses.
        prompt: What the model reads.
        choices: The answers to choose from; none to generate.
    """
    return [
        Asked(picture, picture, prompt, tuple(choices), tuple(choices), str(number), "--prompt")
        for number, picture in enumerate(pictures)
    ]


def from_file(path: Path, style: Style, choices: Sequence[str], folder: str | None = None) -> list[Asked]:
    """The questions of a JSON or JSONL file.

    A record has ``image``, and ``question`` (put into the config's prompt) or ``prompt`` (read as it is); it may have
    ``choices``, ``context`` and ``question_id``. Further fields are passed over, so that annotations can be given.

    Args:
        path: The file.
        style: How the run config writes prompts and answers.
        choices: Those of records that bring none.
        folder: What relative image paths count from; None for the file's own folder.

    Raises:
        DataError: With everything that is wrong with the records.
    """
    problems: list[str] = []
    asked = []
    base = folder if folder is not None else str(path.parent)
    for number, (place, raw) in enumerate(read_annotations(path)):
        where = f"{path}: {place}"
        if not isinstance(raw, Mapping):
            problems.append(f'{where}: expected {{"image": …, "question": …}}, found {str(raw)[:60]!r}')
        elif found := _record_problems(raw, where):
            problems += found
        else:
            asked.append(_asked(raw, style, tuple(raw.get("choices") or choices), base, where, number, problems))
    if problems:
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        head = "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
        raise DataError("\n  ".join([head, *problems[:_SHOWN]]) + more)
    return asked


def _record_problems(raw: Mapping[str, Any], where: str) -> list[str]:
    problems = [
        f"{where}: '{key}' must be a text, found {raw[key]!r}"
        for key in ("image", "question", "prompt", "context")
        if raw.get(key) is not None and not isinstance(raw[key], str)
    ]
    missing = [] if raw.get("image") else ["image"]
    missing += [] if raw.get("question") or raw.get("prompt") else ["question"]
    for key in missing:
        near = next((name for name in raw if name not in _FIELDS and suggestion(name, [key])), None)
        problems.append(f"{where}: no '{key}'" + (f"; is '{near}' meant to be it?" if near else ""))
    if raw.get("question") and raw.get("prompt"):
        problems.append(f"{where}: has both 'question' and 'prompt'; give one")
    choices = raw.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(each, str) and each.strip() for each in choices):
            problems.append(f"{where}: 'choices' must be a list of texts, found {choices!r}")
        elif len(set(choices)) < max(len(choices), 2) and choices:
            problems.append(f"{where}: 'choices' needs two or more different texts, found {choices!r}")
    return problems


def _asked(
    raw: Mapping[str, Any],
    style: Style,
    choices: tuple[str, ...],
    folder: str,
    where: str,
    number: int,
    problems: list[str],
) -> Asked:
    image = raw["image"]
    path = image if is_address(image) else os.path.normpath(os.path.join(folder, os.path.expanduser(image)))
    if path == os.path.normpath(os.path.join(folder, image)) and not os.path.isfile(path):
        problems.append(f"{where}: no image file {path}")
    name = str(raw.get("question_id", number))
    if raw.get("prompt"):
        return Asked(path, image, raw["prompt"], choices, choices, name, where)
    if not choices and (needed := sorted({"options", "choices"} & style.prompt.fields)):
        problems.append(f"{where}: no 'choices', but the config's prompt uses {', '.join(needed)}")
    values = {
        "question": raw["question"],
        "context": raw.get("context") or "",
        "options": options(choices),
        "choices": ", ".join(choices),
    }
    candidates = tuple(
        style.target.render({"answer": choice, "letter": letter(index)}) for index, choice in enumerate(choices)
    )
    return Asked(path, image, style.text(style.prompt.render(values)), choices, candidates, name, where)
