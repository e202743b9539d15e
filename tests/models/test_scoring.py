"""Scores from shared prompts and packed candidates are those of one candidate at a time, each with everything anew."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.models import cache, scoring  # noqa: E402
from lavis_peft.models.head import only  # noqa: E402
from lavis_peft.models.scoring import Candidates  # noqa: E402

TEXTS = ["Question: is there a red circle? Short answer:", "what shape is it ?", "Question: the color"]
CANDIDATES = [
    ["yes", "no", "a large green square in the picture"],
    ["circle", "blue triangle"],
    ["a", "b", "c c", "no circle", "yes"],
]


def build(section: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = registry.get_model_class(section["arch"]).from_config(section).eval()
    with torch.no_grad():
        for parameter in [model.query_tokens, *model.Qformer.parameters(), *model.projection.parameters()]:
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def images(count: int) -> torch.Tensor:
    return torch.randn((count, 3, 32, 32), generator=torch.Generator().manual_seed(3))


def plain_t5(model: Any, prefix: torch.Tensor, mask: torch.Tensor, text: str, candidate: str) -> torch.Tensor:
    inputs = model.t5_tokenizer([text], return_tensors="pt")
    targets = model.t5_tokenizer([candidate], return_tensors="pt").input_ids
    embeds = torch.cat([prefix, model.t5_model.get_input_embeddings()(inputs.input_ids)], dim=1)
    attention = torch.cat([mask, inputs.attention_mask], dim=1)
    logits = model.t5_model(inputs_embeds=embeds, attention_mask=attention, labels=targets).logits
    return F.cross_entropy(logits[0], targets[0], reduction="sum")


def plain_llama(model: Any, prefix: torch.Tensor, mask: torch.Tensor, text: str, candidate: str) -> torch.Tensor:
    prompt = model.llm_tokenizer([text], return_tensors="pt").input_ids
    answer = model.llm_tokenizer([candidate], return_tensors="pt").input_ids[:, 1:]
    ids = torch.cat([prompt, answer], dim=1)
    embeds = torch.cat([prefix, model.llm_model.get_input_embeddings()(ids)], dim=1)
    logits = model.llm_model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2])).logits
    return F.cross_entropy(logits[0, -answer.shape[1] - 1 : -1], answer[0], reduction="sum")


def plain_scores(model: Any) -> list[list[float]]:
    plain = plain_t5 if model.family == "t5" else plain_llama
    found = []
    for image, text, own in zip(images(3), TEXTS, CANDIDATES, strict=True):
        scores = [plain(model, *model.encode_images(image[None], [text]), text, each) for each in own]
        found.append([float(score) for score in scores])
    return found


@pytest.mark.parametrize("passes", ["one pass", "many passes"])
@pytest.mark.parametrize("family", ["t5", "llama"])
@torch.no_grad()
def test_scores_are_those_of_the_plain_way(
    family: str, passes: str, model_section: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(model_section(family))
    if passes == "many passes":
        monkeypatch.setattr(scoring, "PASS_BYTES", 1)  # room for no row, so that each goes alone
    expected = plain_scores(model)
    found = model.score_candidates(images(3), TEXTS, CANDIDATES)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(plain), rtol=1e-5, atol=1e-5)
        assert ours.argsort().tolist() == torch.tensor(plain).argsort().tolist()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_prompt_is_encoded_once_per_sample(family: str, model_section: Callable[..., dict]) -> None:
    model = build(model_section(family))
    rows: list[tuple[int, int]] = []

    def note(_: Any, inputs: tuple) -> None:
        rows.append(tuple(inputs[0].shape[:2]))

    layer = model.t5_model.encoder.block[0] if family == "t5" else model.llm_model.model.layers[0]
    layer.register_forward_pre_hook(note)
    model.score_candidates(images(3), TEXTS, CANDIDATES)
    long = [count for count, tokens in rows if tokens > 8]
    assert long == [3]  # one pass over queries and instructions, of one row per sample


def candidates_of(lengths: list[int]) -> Candidates:
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    return Candidates.of(torch.arange(mask.numel()).view_as(mask), mask, [len(lengths)], torch.device("cpu"))


def test_packs_are_sorted_and_hold_every_row_of_two_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ROWS", 2)
    rows = candidates_of([1, 4, 2, 5, 3, 2])
    packs = list(rows.packs(row_bytes=1, vocabulary=1))
    assert [pack.index.tolist() for pack in packs] == [[3, 1], [4, 2], [5]]
    assert [pack.ids.shape[1] for pack in packs] == [5, 3, 2]
    assert packs[1].targets.tolist() == [[21, 22], [11, -100]]


def test_packs_are_bounded_by_the_bytes_of_the_prompt_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PASS_BYTES", 100)
    sizes = [len(pack.index) for pack in candidates_of([2] * 7).packs(row_bytes=30, vocabulary=0)]
    assert sizes == [3, 3, 1]


def test_packs_are_bounded_by_the_bytes_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PASS_BYTES", 2 * 4 * 100 * 8)  # two rows of four tokens of 100 words
    sizes = [len(pack.index) for pack in candidates_of([4, 4, 4, 2, 2, 2, 2]).packs(row_bytes=0, vocabulary=100)]
    assert sizes == [2, 2, 3]  # the last of four tokens decides for its pack; two tokens leave room for more rows


def test_an_empty_candidate_costs_nothing() -> None:
    rows = candidates_of([0, 2])
    losses = rows.first_losses(torch.randn(1, 8))
    assert losses[0] == 0 and losses[1] > 0


@torch.no_grad()
def test_rows_of_a_cache_are_copies(model_section: Callable[..., dict]) -> None:
    model = build(model_section("t5"))
    output = model.t5_model(input_ids=torch.tensor([[4, 5, 6], [7, 8, 9]]), decoder_input_ids=torch.zeros(2, 1).long())
    past = output.past_key_values
    bytes_before = cache.row_bytes(past)
    taken = cache.take_rows(past, torch.tensor([1, 1, 0]))
    assert cache.row_bytes(taken) == bytes_before
    pairs = list(zip(cache._tensors(past), cache._tensors(taken), strict=True))
    assert pairs
    assert all(torch.equal(new, old[[1, 1, 0]]) and new.data_ptr() != old.data_ptr() for old, new in pairs)


def test_an_output_layer_sees_only_what_is_selected() -> None:
    head, hidden = torch.nn.Linear(4, 6), torch.randn(2, 5, 4)
    with only(head, lambda states: states[:, -1]):
        narrow = head(hidden)
    torch.testing.assert_close(narrow, head(hidden)[:, -1])
    assert head(hidden).shape == (2, 5, 6)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_samples_may_have_no_candidates(family: str, model_section: Callable[..., dict]) -> None:
    model = build(model_section(family))
    own = ["yes", "a green square"]
    some = model.score_candidates(images(3), TEXTS, [[], own, []])
    assert [len(scores) for scores in some] == [0, 2, 0]
    torch.testing.assert_close(some[1], model.score_candidates(images(3), TEXTS, [["no"], own, ["no"]])[1])
    assert [len(scores) for scores in model.score_candidates(images(3), TEXTS, [[], [], []])] == [0, 0, 0]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_candidates_of_one_token_take_no_pass_of_their_own(
    family: str, model_section: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(model_section(family))
    monkeypatch.setattr(Candidates, "packs", lambda self, *_: iter(()))
    # T5's answers end in </s>, so that one word is two tokens and nothing but the empty answer is one.
    short = [[""]] * 3 if family == "t5" else [["yes", "no"], ["a"], ["circle", "red", "b"]]
    found = model.score_candidates(images(3), TEXTS, short)
    monkeypatch.setattr(f"{__name__}.CANDIDATES", short)
    for ours, plain in zip(found, plain_scores(model), strict=True):
        torch.testing.assert_close(ours, torch.tensor(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_half_precision_scores_are_near(family: str, model_section: Callable[..., dict]) -> None:
    whole = build(model_section(family, llm_precision="fp32", vit_precision="fp32"))
    half = build(model_section(family, llm_precision="bf16", vit_precision="bf16"))
    expected = torch.cat(whole.score_candidates(images(3), TEXTS, CANDIDATES))
    found = torch.cat(half.score_candidates(images(3), TEXTS, CANDIDATES))
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 0.05 * expected.norm()
