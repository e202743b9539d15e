"""Fused attention computes what LAVIS's own steps compute, forward and backward."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig

import lavis_peft

lavis_peft.register()

from lavis.models.blip2_models.Qformer import BertLMHeadModel  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.models.attention import attend, fuse_qformer, fuse_vision  # noqa: E402
from lavis_peft.models.vision import VisionSpec, build_vision_encoder  # noqa: E402

QUERIES, TEXT, PATCHES, WIDTH, VISION = 4, 5, 9, 24, 16


def qformer(dropout: float = 0.0) -> Any:
    config = BertConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=dropout,
    )
    config.encoder_width, config.add_cross_attention = VISION, True
    config.cross_attention_freq, config.query_length = 2, QUERIES
    torch.manual_seed(0)
    bert = BertLMHeadModel(config).bert
    with torch.no_grad():
        for parameter in bert.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return bert


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, QUERIES + TEXT, dtype=torch.long)
    mask[1, -2:] = 0
    seen = torch.ones(2, PATCHES, dtype=torch.long)
    seen[0, -3:] = 0
    return {
        "input_ids": torch.randint(0, 30, (2, TEXT), generator=generator),
        "attention_mask": mask,
        "query_embeds": torch.randn(2, QUERIES, WIDTH, generator=generator),
        "encoder_hidden_states": torch.randn(2, PATCHES, VISION, generator=generator),
        "encoder_attention_mask": seen,
        "return_dict": True,
    }


def gradients(bert: Any, given: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    output = bert(**given).last_hidden_state[:, :QUERIES]
    output.square().sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}


def test_the_q_former_and_its_gradients_stay_the_same() -> None:
    plain, fused = qformer(), qformer()
    fuse_qformer(fused)
    expected, expected_gradients = gradients(plain, inputs())
    found, found_gradients = gradients(fused, inputs())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Nothing reads the last layer's text output: its branch gets the zeros that LAVIS's computation gives it.
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
    dead = [name for name in found_gradients if name.startswith("encoder.layer.2.intermediate.")]
    assert dead
    assert not any(found_gradients[name].any() for name in dead)


def test_the_last_layer_computes_queries_only() -> None:
    bert = qformer()
    fuse_qformer(bert)
    assert bert(**inputs()).last_hidden_state.shape == (2, QUERIES, WIDTH)


@pytest.mark.parametrize("asked", ["attentions", "head mask", "text alone"])
def test_what_cannot_be_fused_is_lavis_s(asked: str) -> None:
    plain, fused = qformer().eval(), qformer().eval()
    fuse_qformer(fused)
    given = inputs()
    if asked == "attentions":
        given["output_attentions"] = True
    elif asked == "head mask":
        given["head_mask"] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    else:
        given = {"input_ids": given["input_ids"], "attention_mask": torch.ones(2, TEXT), "return_dict": True}
    expected, found = plain(**given), fused(**given)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    if asked == "attentions":
        torch.testing.assert_close(found.attentions, expected.attentions)


def test_attention_dropout_drops_in_training_and_not_in_evaluation() -> None:
    bert = qformer(dropout=0.5)
    fuse_qformer(bert)
    plain = qformer(dropout=0.5)
    given = inputs()
    bert.train()
    assert not torch.equal(bert(**given).last_hidden_state, bert(**given).last_hidden_state)
    expected = plain.eval()(**given).last_hidden_state[:, :QUERIES]
    torch.testing.assert_close(bert.eval()(**given).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_vision_encoder_stays_the_same(bias: bool) -> None:
    spec = VisionSpec(embed_dim=16, depth=2, num_heads=4, patch_size=8, mlp_ratio=2, qkv_bias=bias)
    encoder = build_vision_encoder(spec, 32, precision="fp32").eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
    picture = torch.randn(2, 3, 32, 32)
    expected = encoder(picture)
    names = list(encoder.state_dict())
    fuse_vision(encoder)
    torch.testing.assert_close(encoder(picture), expected, rtol=1e-5, atol=1e-5)
    assert list(encoder.state_dict()) == names


@pytest.mark.parametrize(("family", "norms"), [("t5", False), ("llama", False), ("t5", True), ("llama", True)])
def test_a_model_trains_the_same_with_fast_and_plain_kernels(
    family: str, norms: bool, model_section: Callable[..., dict], qformer_lora: dict
) -> None:
    from lavis.common.registry import registry

    found = {}
    samples = {
        "image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)),
        "text_input": ["what shape is it ?", "the color of the small square"],
        "text_output": ["circle", "a green square"],
    }
    adapters = {**qformer_lora, "llm": {**qformer_lora["qformer"], "sublayers": ["ffn"]}}
    if norms:
        adapters = {part: {"peft_type": "LN_TUNING"} for part in ("qformer", "llm")}
    for kernels in ("fast", "plain"):
        section = model_section(family, adapters=adapters, kernels=kernels)
        torch.manual_seed(0)
        model = registry.get_model_class(section["arch"]).from_config(section).train()
        loss = model(samples)["loss"]
        loss.backward()
        found[kernels] = (loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found["fast"][0], found["plain"][0], rtol=1e-5, atol=1e-5)
    assert found["fast"][1].keys() == found["plain"][1].keys()
    for name, gradient in found["plain"][1].items():
        # Against the whole gradient's size: single elements are sums of large terms that cancel.
        assert (found["fast"][1][name] - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("masked", [True, False])
def test_half_precision_on_a_cpu_is_the_fused_form_s(masked: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    given = [torch.randn(2, 3, 7, 8, generator=generator).requires_grad_() for _ in range(3)]
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., -3:] = -10000.0
    mask = mask if masked else None
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in given]
    expected = attend(*given, mask, scale=8**-0.5)
    found = attend(*halves, mask if mask is None else mask.bfloat16(), scale=8**-0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    for output in (expected, found):
        output.float().square().sum().backward()
    for half, whole in zip(halves, given, strict=True):
        assert (half.grad.float() - whole.grad).norm() <= 0.03 * whole.grad.norm()
    dropped = attend(*halves, None, dropout=0.5, scale=8**-0.5)
    assert not torch.equal(dropped, attend(*halves, None, dropout=0.5, scale=8**-0.5))


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LORA", "r": 2, "use_dora": True},
        {"peft_type": "LOHA", "r": 2},
        {"peft_type": "HRA", "r": 2},
        {"peft_type": "LOKR", "r": 2},
        {"peft_type": "IA3"},
        {"peft_type": "ADALORA", "init_r": 3, "target_r": 2, "tinit": 0.1, "tfinal": 0.1, "deltaT": 1},
    ],
    ids=lambda settings: settings["peft_type"],
)
def test_other_tuners_give_the_same_on_fast_and_plain_layers(
    settings: dict[str, Any], model_section: Callable[..., dict]
) -> None:
    from lavis.common.registry import registry

    adapters = {"qformer": {**settings, "sublayers": ["self_attention", "ffn"]}, "llm": "frozen"}
    samples = {
        "image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)),
        "text_input": ["what shape is it ?", "the color of the small square"],
        "text_output": ["circle", "a green square"],
    }
    losses = []
    for kernels in ("fast", "plain"):
        section = model_section("t5", adapters=adapters, kernels=kernels)
        torch.manual_seed(0)
        model = registry.get_model_class(section["arch"]).from_config(section).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        if model.adalora is not None:
            model.adalora.start(10)
        for _ in range(2):  # adapters begin as nothing: only the second step's loss depends on them
            loss = model(samples)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if model.adalora is not None:
                model.adalora.after_step()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_beams_and_copies_of_a_fast_model_give_the_plain_one_s_answers(
    family: str, model_section: Callable[..., dict]
) -> None:
    from lavis.common.registry import registry

    given = {
        "image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)),
        "prompt": ["what ?", "a b"],
    }
    answers = {}
    for kernels in ("fast", "plain"):
        section = model_section(family, kernels=kernels)
        torch.manual_seed(0)
        model = registry.get_model_class(section["arch"]).from_config(section).eval()
        answers[kernels] = model.generate(given, num_beams=3, max_length=6)
        if kernels == "fast":
            file = io.BytesIO()
            torch.save(copy.deepcopy(model), file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)  # a file of our own, of a moment ago
            assert copied.generate(given, num_beams=3, max_length=6) == answers["fast"]
    assert answers["fast"] == answers["plain"] and any(answers["fast"])


def test_the_language_model_s_attention_follows_the_switch(model_section: Callable[..., dict]) -> None:
    from lavis.common.registry import registry

    found = {}
    for kernels in ("fast", "plain"):
        section = model_section("t5", kernels=kernels)
        model = registry.get_model_class(section["arch"]).from_config(section)
        found[kernels] = getattr(model.llm.config, "_attn_implementation", "eager")
        fused = type(model.visual_encoder.blocks[0].attn).__name__ == "FusedVisionAttention"
        assert fused is (kernels == "fast")
    assert found["plain"] == "eager"
