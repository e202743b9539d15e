"""LAVIS's Q-Former on the installed transformers: it builds, loads, resizes, runs and trains."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft import compat
from lavis_peft.compat import qformer as patches

# B samples, Q queries, T text tokens, K image positions, D width, E image width
B, Q, T, K, D, E = 3, 4, 5, 7, 32, 24


@pytest.fixture(scope="module")
def lavis_qformer() -> Any:
    compat.apply()
    return importlib.import_module("lavis.models.blip2_models.Qformer")


@pytest.fixture(scope="module")
def applied(lavis_qformer: Any) -> list[compat.Patch]:
    return compat.apply()


def sizes() -> dict[str, int]:
    return {
        "hidden_size": D,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    }


def config(lavis_qformer: Any) -> Any:
    made = lavis_qformer.BertConfig(**sizes())
    made.encoder_width, made.query_length = E, Q
    made.add_cross_attention, made.cross_attention_freq = True, 2
    return made


def forward(model: Any, **changes: Any) -> torch.Tensor:
    torch.manual_seed(1)
    inputs = {
        "attention_mask": torch.ones(B, Q + T, dtype=torch.long),
        "query_embeds": torch.randn(B, Q, D),
        "encoder_hidden_states": torch.randn(B, K, E),
        "encoder_attention_mask": torch.ones(B, K, dtype=torch.long),
        **changes,
    }
    return model.bert(torch.randint(0, 50, (B, T)), return_dict=True, **inputs).last_hidden_state


def test_builds_with_its_own_initialisation(lavis_qformer: Any) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer))
    query = model.bert.encoder.layer[0].attention.self.query
    assert query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not query.bias.any()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_builds_and_resizes_on_meta(lavis_qformer: Any) -> None:
    with torch.device("meta"):
        model = lavis_qformer.BertLMHeadModel(config(lavis_qformer))
        model.resize_token_embeddings(53)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.bert.embeddings.word_embeddings.num_embeddings == 53


def test_new_rows_are_drawn_as_lavis_draws_them(lavis_qformer: Any) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(5.0)
    model.resize_token_embeddings(250)
    new = model.bert.embeddings.word_embeddings.weight[50:]
    assert new.mean().item() == pytest.approx(0.0, abs=0.01), "not around the old rows' mean"
    assert new.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.cls.predictions.decoder.out_features == 250
    assert model.config.vocab_size == 250


def test_resizing_is_patched_only_where_it_draws_otherwise(lavis_qformer: Any, applied: list[compat.Patch]) -> None:
    own = "resize_token_embeddings" in vars(lavis_qformer.BertPreTrainedModel)
    assert (patches.RESIZING in applied) == patches.RESIZING.needed() == own


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_trains(lavis_qformer: Any, lora: bool) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer)).train()
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=2, target_modules=["query", "value"]), model.bert)
    queries = torch.randn(B, Q, D, requires_grad=True)
    forward(model, query_embeds=queries).pow(2).sum().backward()
    marks = ("lora_B",) if lora else ("self.query.weight", "self.key.weight")
    trained = [parameter for name, parameter in model.named_parameters() if name.endswith(marks) or "lora_B" in name]
    assert len(trained) == 12  # two in each of 4 self-attentions and 2 cross-attentions
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    assert queries.grad is not None and queries.grad.any()


def test_masked_positions_have_no_influence(lavis_qformer: Any) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer)).eval()
    mask = torch.ones(B, K, dtype=torch.long)
    mask[:, -2:] = 0
    image = torch.randn(B, K, E)
    other = image.clone()
    other[:, -2:] = 9.0
    with torch.no_grad():
        seen, hidden = (
            forward(model, encoder_hidden_states=states, encoder_attention_mask=mask) for states in (image, other)
        )
        unmasked = forward(model, encoder_hidden_states=other)
    assert torch.equal(seen, hidden)
    assert not torch.equal(hidden, unmasked)


@pytest.mark.parametrize("shape", [(B, K), (B, 2, K)])
def test_inverted_mask_is_what_transformers_made(lavis_qformer: Any, shape: tuple[int, ...]) -> None:
    class Model:
        dtype = torch.float32

    mask = (torch.arange(int(torch.tensor(shape).prod())).reshape(shape) % 2).long()
    inverted = patches.invert_attention_mask(Model(), mask)
    assert inverted.shape == ((B, 1, 1, K) if len(shape) == 2 else (B, 1, 2, K))
    assert inverted.unique().tolist() == [torch.finfo(torch.float32).min, 0.0]
    theirs = getattr(patches._host(), "invert_attention_mask", None)
    if theirs is not None:
        assert torch.equal(inverted, theirs(Model(), mask))


def test_head_masks(lavis_qformer: Any) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer)).eval()
    assert patches.get_head_mask(model, None, 4) == [None] * 4
    assert patches.get_head_mask(model, torch.ones(4), 4).shape == (4, 1, 4, 1, 1)
    with torch.no_grad():
        plain, kept, silenced = (
            forward(model, head_mask=mask) for mask in (None, torch.ones(4), torch.tensor([0.0, 1, 1, 1]))
        )
    assert torch.equal(plain, kept)
    assert not torch.allclose(plain, silenced)
    theirs = getattr(patches._host(), "get_head_mask", None)
    if theirs is not None:
        per_layer = torch.rand(4, 4)
        assert torch.equal(patches.get_head_mask(model, per_layer, 4), theirs(model, per_layer, 4))


def test_mask_helpers_are_added_only_where_they_are_gone(lavis_qformer: Any, applied: list[compat.Patch]) -> None:
    ours = "get_head_mask" in vars(lavis_qformer.BertPreTrainedModel)
    assert (patches.MASK_HELPERS in applied) == ours == (not hasattr(patches._host(), "get_head_mask"))


def test_init_weights_is_patched_only_where_ties_are_listed(lavis_qformer: Any, applied: list[compat.Patch]) -> None:
    model = lavis_qformer.BertLMHeadModel(config(lavis_qformer))
    assert (patches.TYING in applied) == hasattr(model, "all_tied_weights_keys")


def test_loads_a_bert_whole(lavis_qformer: Any, tmp_path: Path, applied: list[compat.Patch]) -> None:
    from transformers import BertConfig, BertForPreTraining

    source = BertForPreTraining(BertConfig(**sizes()))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    source.save_pretrained(tmp_path)
    model = lavis_qformer.BertLMHeadModel.from_pretrained(str(tmp_path), config=config(lavis_qformer))
    loaded, expected = model.state_dict(), source.state_dict()
    shared = {name for name in loaded if name in expected}
    assert len(shared) > 60
    assert [name for name in sorted(shared) if not torch.equal(loaded[name], expected[name])] == []
    # Current BERT files don't hold this buffer, and LAVIS's Q-Former keeps it in its state.
    assert torch.equal(loaded["bert.embeddings.position_ids"], torch.arange(64)[None])
    fresh = loaded["bert.encoder.layer.0.crossattention.self.query.weight"]
    assert fresh.std().item() == pytest.approx(0.02, rel=0.1)
    assert (patches.POSITION_IDS in applied) == patches.POSITION_IDS.needed()
