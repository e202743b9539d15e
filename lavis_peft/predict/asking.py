"""Asking a model, batch by batch, while the next pictures are read. Letters: B batch, H and W in pixels."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lavis_peft.datasets.images import UnreadableImage, whole_files_only
from lavis_peft.errors import DataError
from lavis_peft.predict.pictures import open_picture
from lavis_peft.predict.questions import Asked

_THREADS = 4


#: From a model and a batch (``image``, ``text_input``) to a text for each question.
Writer = Callable[[Any, Mapping[str, Any]], list[str]]


def answers(
    model: Any,
    processor: Callable[[Any], Tensor],
    asked: Sequence[Asked],
    write: Writer,
    batch_size: int,
    on_bad: Callable[[UnreadableImage], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """A row for each question, in their order.

    Args:
        model: Has ``device`` and ``score_candidates``, and what ``write`` calls.
        processor: From an RGB picture to a tensor (3, H, W).
        asked: The questions.
        write: Generates answers.
        batch_size: Questions at once.
        on_bad: Called with each picture that can't be read, whose row then has ``error``; None raises it.

    Yields:
        ``question_id``, ``image``, ``prompt`` and ``prediction``; with choices ``choices`` and ``scores`` besides: the
        sum of token negative log-likelihoods of each, lower is likelier.

    Raises:
        UnreadableImage: A picture can't be read, and ``on_bad`` is None.
        DataError: The model's scores aren't numbers.
    """
    batches = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    # For the whole time: the switch is the program's, and pictures are read in several threads.
    with whole_files_only(), ThreadPoolExecutor(_THREADS) as pool:

        def read(batch: Sequence[Asked]) -> list[Future]:
            return [pool.submit(lambda each: processor(open_picture(each.image, each.where)), each) for each in batch]

        try:
            coming = read(batches[0]) if batches else []
            for number, batch in enumerate(batches):
                pictures, coming = coming, read(batches[number + 1]) if number + 1 < len(batches) else []
                yield from _answered(model, batch, [_result(each, on_bad) for each in pictures], write)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(picture: Future, on_bad: Callable[[UnreadableImage], None] | None) -> Tensor | UnreadableImage:
    try:
        return picture.result()
    except UnreadableImage as error:
        if on_bad is None:
            raise
        on_bad(error)
        return error


def _answered(
    model: Any, batch: Sequence[Asked], pictures: Sequence[Tensor | UnreadableImage], write: Writer
) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {
        place: {"error": str(picture)} for place, picture in enumerate(pictures) if isinstance(picture, UnreadableImage)
    }
    whole = [place for place in range(len(batch)) if place not in found]
    ranked = [place for place in whole if batch[place].candidates]
    open_ended = [place for place in whole if not batch[place].candidates]

    def images(places: list[int]) -> Tensor:
        return torch.stack([pictures[place] for place in places]).to(model.device)  # (B, 3, H, W)

    if ranked:
        candidates = [list(batch[place].candidates) for place in ranked]
        scores = model.score_candidates(images(ranked), [batch[place].prompt for place in ranked], candidates)
        for place, own in zip(ranked, scores, strict=True):
            found[place] = _ranked(batch[place], own.tolist())
    if open_ended:
        samples = {"image": images(open_ended), "text_input": [batch[place].prompt for place in open_ended]}
        texts = write(model, samples)
        found |= {place: {"prediction": text.strip()} for place, text in zip(open_ended, texts, strict=True)}
    return [
        {"question_id": each.question_id, "image": each.image_id, "prompt": each.prompt, **found[place]}
        for place, each in enumerate(batch)
    ]


def _ranked(asked: Asked, scores: list[float]) -> dict[str, Any]:
    if not all(math.isfinite(score) for score in scores):
        raise DataError(f"{asked.where}: the model's scores aren't numbers; its weights have diverged in training")
    best = min(range(len(scores)), key=scores.__getitem__)
    return {"prediction": asked.choices[best], "choices": list(asked.choices), "scores": scores}
