"""The same small random weights in LAVIS main's InstructBLIP and in ours compute the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

needs_lavis_main = pytest.mark.skipif(
    registry.get_model_class("blip2_t5_instruct") is None, reason="the installed LAVIS has no InstructBLIP of its own"
)
TEXTS = ["Question: is there a red circle? Short answer:", "what shape is it ?", "Question: the color"]
TARGETS = ["yes", "blue triangle", "a large green square"]


def _theirs(name: str, ours: Any, llm: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """LAVIS's class with our parts' shapes in place of what it downloads, and our weights in it."""
    cls = registry.get_model_class(name)
    parts = {
        "init_tokenizer": lambda self, **_: copy.deepcopy(ours.tokenizer),
        "init_vision_encoder": lambda self, *_: (copy.deepcopy(ours.visual_encoder), copy.deepcopy(ours.ln_vision)),
        "init_Qformer": lambda self, *_: (copy.deepcopy(ours.Qformer), copy.deepcopy(ours.query_tokens)),
    }
    for attribute, value in parts.items():
        monkeypatch.setattr(cls, attribute, value)
    # Ours is without the language-model head already; theirs resizes the embeddings, to the same number of words.
    monkeypatch.setattr(type(ours.Qformer), "resize_token_embeddings", lambda self, size: None)
    size = {"img_size": ours.spec.image_size, "num_query_token": ours.spec.num_query_token, "vit_precision": "fp32"}
    theirs = cls(**size, **{ours.llm_key: llm}).float().eval()  # LAVIS holds the language model in half precision
    theirs.load_state_dict(ours.state_dict(), strict=False)
    llm_keys = {key for key in theirs.state_dict() if "position_ids" not in key and "inv_freq" not in key}
    assert llm_keys == {key for key in ours.state_dict() if "position_ids" not in key and "inv_freq" not in key}
    return theirs


@pytest.fixture(params=["t5", "llama"])
def pair(
    request: pytest.FixtureRequest, model_section: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any]:
    """Ours and theirs, of one family."""
    if request.param == "t5":
        section, name = model_section("t5"), "blip2_t5_instruct"
        llm = section["t5_model"]
    else:
        llm = str(request.getfixturevalue("sentencepiece_dir"))
        section, name = model_section("llama", llm_model=llm), "blip2_vicuna_instruct"
    cls = registry.get_model_class(section["arch"])
    torch.manual_seed(1)
    ours = cls.from_config(section).eval()
    with torch.no_grad():
        for parameter in [ours.query_tokens, *ours.Qformer.parameters(), *ours.projection.parameters()]:
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return ours, _theirs(name, ours, llm, monkeypatch)


def _image(count: int, frames: int | None = None) -> torch.Tensor:
    shape = (count, 3, 32, 32) if frames is None else (count, 3, frames, 32, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@needs_lavis_main
def test_training_loss(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    samples = {"image": _image(3), "text_input": TEXTS, "text_output": TARGETS}
    expected = theirs(samples)["loss"].item()
    assert ours(samples)["loss"].item() == pytest.approx(expected, rel=1e-5)


@needs_lavis_main
def test_training_loss_of_long_texts_is_cut_alike(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    samples = {
        "image": _image(2),
        "text_input": [" ".join(["red", "blue", "circle", "is"] * 60), TEXTS[0]],
        "text_output": [" ".join(["green", "square"] * 200), "no"],
    }
    for model in (ours, theirs):
        model.max_txt_len, model.max_output_txt_len = 24, 20
    assert ours(samples)["loss"].item() == pytest.approx(theirs(samples)["loss"].item(), rel=1e-5)


@needs_lavis_main
@pytest.mark.parametrize("segments", [1, 2])
def test_predict_class_ranks_alike(pair: tuple[Any, Any], segments: int) -> None:
    ours, theirs = pair
    samples = {"image": _image(3), "prompt": "Question: {} Short answer:", "text_input": ["red ?", "is it", "shape"]}
    candidates = ["yes", "blue triangle", "a large green square", "no"]
    if segments == 2 and ours.family == "llama":
        pytest.skip("LAVIS averages a LLaMA segment over its own padded length, so segments of it don't compare")
    expected = theirs.predict_class(dict(samples), candidates, n_segments=segments)
    assert ours.predict_class(dict(samples), candidates, n_segments=segments).tolist() == expected.tolist()


@needs_lavis_main
def test_predict_class_of_own_candidates(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    samples = {
        "image": _image(3),
        "prompt": "{}",
        "text_input": TEXTS,
        "context": ["red", "the picture", "left"],
    }
    candidates = [["yes", "no", "blue"], ["red circle", "small"], ["a", "b", "c", "large square"]]
    assert ours.predict_class(dict(samples), candidates) == theirs.predict_class(dict(samples), candidates)


@needs_lavis_main
def test_scores_are_theirs(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """LAVIS sums token losses for T5; for LLaMA it averages over the padded length, one number for all."""
    ours, theirs = pair
    candidates = ["yes", "blue triangle", "a large green square", "no"]
    seen = []
    argsort = torch.argsort
    monkeypatch.setattr(torch, "argsort", lambda scores, **kw: (seen.append(scores), argsort(scores, **kw))[1])
    theirs.predict_class({"image": _image(2), "prompt": TEXTS[:2]}, candidates)
    scores = torch.stack(ours.score_candidates(_image(2), TEXTS[:2], [candidates] * 2))
    expected = seen[0]
    if ours.family == "llama":
        expected = expected * (scores / expected).mean()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@needs_lavis_main
@pytest.mark.parametrize("frames", [None, 2])
def test_greedy_generation(pair: tuple[Any, Any], frames: int | None) -> None:
    ours, theirs = pair
    samples = {"image": _image(3, frames), "prompt": TEXTS}
    options = {"num_beams": 1, "max_length": 8}
    assert ours.generate(dict(samples), **options) == theirs.generate(dict(samples), **options)


@needs_lavis_main
def test_beam_answers(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    samples = {"image": _image(2), "text_input": ["red ?", "what shape"], "choices": [["a", "b"], ["yes", "no"]]}
    for prompt in ("", "Question: {} Short answer:", "Question: {} Options: {} Short answer:"):
        expected = theirs.predict_answers(copy.copy(samples), max_len=6, prompt=prompt)
        assert ours.predict_answers(copy.copy(samples), max_len=6, prompt=prompt) == expected
