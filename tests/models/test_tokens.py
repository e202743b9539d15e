"""Remembered tokens are those that the tokenizer itself gives, whatever is asked of it, and in whatever order."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lavis_peft

lavis_peft.register()

from lavis_peft.models.language import as_vicuna_tokenizer, load_tokenizer  # noqa: E402
from lavis_peft.models.qformer import load_qformer_tokenizer  # noqa: E402
from lavis_peft.models.tokens import TokenCache  # noqa: E402

TEXTS = [
    "",
    "yes",
    "what color is the circle ?",
    "Question: is there a red circle in the image? Short answer:",
    "context: " + "the small red square is left of the large blue triangle . " * 4,
    "unknown words of ünïcode \n here",
    "yes </s>",
]
KINDS = ["bert", "t5", "llama", "llama of sentencepiece"]


def load(kind: str, request: pytest.FixtureRequest) -> Any:
    if kind == "bert":
        return load_qformer_tokenizer(str(request.getfixturevalue("bert_dir")))
    if kind == "t5":
        return load_tokenizer(str(request.getfixturevalue("t5_dir")), "key", fast=True, truncation_side="left")
    name = "llama_dir" if kind == "llama" else "sentencepiece_dir"
    folder: Path = request.getfixturevalue(name)
    return as_vicuna_tokenizer(load_tokenizer(str(folder), "key", fast=False, truncation_side="left"))


def direct(tokenizer: Any, texts: list[str], most: int | None) -> Any:
    limit = {} if most is None else {"truncation": True, "max_length": most}
    return tokenizer(texts, padding="longest", return_tensors="pt", **limit)


@pytest.mark.parametrize("size", [0, 900, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens(kind: str, size: int, request: pytest.FixtureRequest) -> None:
    """With no room, with room for some of the texts, and with room for all."""
    tokenizer, fresh, cache = load(kind, request), load(kind, request), TokenCache(size)
    draws = random.Random(0)
    for _ in range(60):
        texts = draws.choices(TEXTS, k=draws.randint(1, 5))
        most = draws.choice([None, 4, 12])
        for each in (tokenizer, fresh):
            each.padding_side = draws.choice(["left", "right"]) if each is tokenizer else tokenizer.padding_side
            each.truncation_side = draws.choice(["left", "right"]) if each is tokenizer else tokenizer.truncation_side
        found, expected = cache(tokenizer, texts, most), direct(fresh, texts, most)
        for key in ("input_ids", "attention_mask"):
            assert found[key].dtype == expected[key].dtype
            assert torch.equal(found[key], expected[key]), (texts, most, tokenizer.padding_side)


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.__dict__["tokenizer"] = tokenizer
        self.__dict__["texts"] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.tokenizer, name, value)

    def __call__(self, texts: list[str], **more: Any) -> Any:
        self.texts.extend(texts)
        return self.tokenizer(texts, **more)


def test_a_text_is_tokenised_once_for_each_way_of_cutting(request: pytest.FixtureRequest) -> None:
    tokenizer, cache = Counting(load("bert", request)), TokenCache()
    for _ in range(3):
        cache(tokenizer, ["yes", "no", "yes"], 12)
        cache(tokenizer, ["no"], 12)
    assert tokenizer.texts == ["yes", "no"]
    cache(tokenizer, ["yes"])
    tokenizer.truncation_side = "right"
    cache(tokenizer, ["yes"], 12)
    assert tokenizer.texts == ["yes", "no", "yes", "yes"]


def test_tokenizers_do_not_share(request: pytest.FixtureRequest) -> None:
    cache = TokenCache()
    for kind in ("bert", "t5"):
        tokenizer = load(kind, request)
        assert torch.equal(cache(tokenizer, ["a circle"]).input_ids, direct(tokenizer, ["a circle"], None).input_ids)
        del tokenizer  # the next one may get its address


def test_memory_is_bounded_and_a_full_cache_keeps_what_it_has(request: pytest.FixtureRequest) -> None:
    tokenizer, cache = Counting(load("bert", request)), TokenCache(10_000)
    for _ in range(2):
        for number in range(1000):
            cache(tokenizer, [f"question {number}"])
    (_, known), *others = cache._known.values()
    assert not others
    assert 20 < len(known) < 50  # some 260 bytes each
    assert len(tokenizer.texts) == 2000 - len(known)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_second_epoch_tokenises_nothing(family: str, model_section: Callable[..., dict[str, Any]]) -> None:
    from lavis.common.registry import registry

    section = model_section(family)
    model = registry.get_model_class(section["arch"]).from_config(section)
    names = ["tokenizer", *(["t5_tokenizer", "t5_output_tokenizer"] if family == "t5" else ["llm_tokenizer"])]
    for name in names:
        setattr(model, name, Counting(getattr(model, name)))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    asked, answers = ["what shape is it ?", "is there a red circle"], ["circle", "yes"]

    def epoch(fresh: bool) -> list[Any]:
        if fresh:
            model.token_cache = TokenCache(0)
        with torch.no_grad():
            loss = model({"image": image, "text_input": asked, "text_output": answers})["loss"]
            scores = model.score_candidates(image, asked, [["red", "a circle"], ["yes", "no", "a"]])
            texts = model.generate({"image": image, "prompt": asked}, num_beams=2, max_length=5)
        return [loss.item(), [score.tolist() for score in scores], texts]

    first = epoch(fresh=False)
    counted = [len(getattr(model, name).texts) for name in names]
    assert all(counted)
    assert epoch(fresh=False) == first
    assert [len(getattr(model, name).texts) for name in names] == counted
    assert epoch(fresh=True) == first
    assert all(len(getattr(model, name).texts) > before for name, before in zip(names, counted, strict=True))
