"""How LAVIS makes prompts out of samples, for each of InstructBLIP's ways to answer."""

import string
from collections.abc import Mapping
from typing import Any

from lavis_peft.errors import DataError


def _one_each(prompt: str | list[str], count: int) -> list[str]:
    texts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(texts) != count:
        raise DataError(f"{len(texts)} prompts for {count} images")
    return texts


def generation_prompts(samples: Mapping[str, Any], default: str, count: int) -> list[str]:
    """Prompts of ``generate``: the samples' own or the model's, with up to 30 OCR tokens in a ``{}``."""
    texts = _one_each(samples.get("prompt", default), count)
    if "ocr_tokens" in samples and "{}" in texts[0]:
        texts = [text.format(", ".join(samples["ocr_tokens"][i][:30])) for i, text in enumerate(texts)]
    return texts


def _lettered(choices: list[str]) -> str:
    return " ".join(f"({string.ascii_lowercase[i]}) {choice}" for i, choice in enumerate(choices))


def answer_prompts(samples: Mapping[str, Any], prompt: str) -> list[str]:
    """Prompts of ``predict_answers``.

    A template with one ``{}`` takes the question; with two it takes OCR tokens and question, or question and choices.
    """
    questions = samples["text_input"]
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not prompt:
        return questions
    if prompt.count("{}") != 2:
        return [prompt.format(question) for question in questions]
    if "ocr_tokens" in samples:
        tokens = samples["ocr_tokens"]
        return [prompt.format(", ".join(tokens[i][:30]), question) for i, question in enumerate(questions)]
    if "choices" in samples:
        return [prompt.format(question, _lettered(samples["choices"][i])) for i, question in enumerate(questions)]
    raise DataError("a prompt with two {} needs 'ocr_tokens' or 'choices' in the samples")


def class_prompts(samples: Mapping[str, Any], count: int) -> list[str]:
    """Prompts of ``predict_class``: filled with ``text_input``; ``context``, ``history``, ``caption`` put before."""
    texts = _one_each(samples["prompt"], count)
    if "text_input" in samples:
        fillings = [[t] if isinstance(t, str) else list(t) for t in samples["text_input"]]
        texts = [text.format(*filling) for text, filling in zip(texts, fillings, strict=True)]
    if samples.get("context", ""):
        texts = [f"context: {samples['context'][i]}. {text}" for i, text in enumerate(texts)]
    if "history" in samples and samples["history"][0]:
        texts = [f"dialog history: {samples['history'][i]}\n{text}" for i, text in enumerate(texts)]
    if "caption" in samples and samples["caption"][0]:
        texts = [f'This image has the caption "{samples["caption"][i]}". {text}' for i, text in enumerate(texts)]
    return texts
