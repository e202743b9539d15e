"""What a model may ask of the machine, and that weights are allocated once."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import lavis_peft
from lavis_peft.errors import ConfigError

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.models.machine import fused_llm  # noqa: E402

TEXTS, TARGETS = ["what shape is it ?", "is there a red circle"], ["circle", "yes"]


def build(section: dict) -> object:
    torch.manual_seed(0)
    return registry.get_model_class(section["arch"]).from_config(section)


_QFORMER_LORA = {
    "peft_type": "LORA",
    "sublayers": ["self_attention", "cross_attention", "ffn"],
    "r": 2,
    "lora_alpha": 4,
}
_LLM_LORA = {"peft_type": "LORA", "sublayers": ["attention", "ffn"], "r": 2, "lora_alpha": 4}
ADAPTERS = {
    "qformer": {"qformer": _QFORMER_LORA},
    "llm": {"llm": _LLM_LORA, "train": ["projection"]},
    "llm, nothing before it": {"llm": _LLM_LORA, "train": []},
    "both": {"qformer": _QFORMER_LORA, "llm": _LLM_LORA},
}


def learned(section: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor | None], object]:
    """Loss and gradients of a training pass, the adapters' second halves not zero, so that all gradients count."""
    model = build(section).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    loss = model({"image": image, "text_input": TEXTS, "text_output": TARGETS})["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, model


def check_learns_the_same(section: dict, changes: dict) -> object:
    loss, gradients, _ = learned(section)
    other_loss, others, model = learned({**section, **changes})
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == others.keys()
    found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    assert len(found) > 10
    assert found.keys() == {name for name, gradient in others.items() if gradient is not None}
    for name, gradient in found.items():
        assert (others[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-9, name
    return model


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("tuned", list(ADAPTERS))
def test_gradients_with_checkpointing_are_the_same(tuned: str, family: str, model_section: Callable[..., dict]) -> None:
    check_learns_the_same(model_section(family, adapters=ADAPTERS[tuned]), {"llm_gradient_checkpointing": True})


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_checkpointed_blocks_run_twice_in_training_and_answer_the_same(
    family: str, model_section: Callable[..., dict]
) -> None:
    adapters = ADAPTERS["llm"]
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    answers = []
    for checkpointed in (False, True):
        section = model_section(family, adapters=adapters, llm_gradient_checkpointing=checkpointed)
        model = build(section).train()
        passes: list[int] = []
        layers = (
            [model.t5_model.encoder.block, model.t5_model.decoder.block] if family == "t5" else [model.llm.model.layers]
        )
        for layer in layers:
            next(part for part in layer[0].modules() if isinstance(part, torch.nn.Linear)).register_forward_hook(
                lambda *_, passes=passes: passes.append(1)
            )
        model({"image": image, "text_input": TEXTS, "text_output": TARGETS})["loss"].backward()
        assert len(passes) == len(layers) * (2 if checkpointed else 1)  # once more in the backward pass
        scores = model.eval().score_candidates(image, TEXTS, [["yes", "no"], ["circle"]])
        answers.append(
            (copy.deepcopy(model).generate({"image": image, "prompt": TEXTS}, max_length=4), torch.cat(scores))
        )
    assert answers[0][0] == answers[1][0]
    torch.testing.assert_close(answers[0][1], answers[1][1])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_checkpointing_goes_with_distributed_training_and_with_copies(
    family: str, model_section: Callable[..., dict]
) -> None:
    lora = {"peft_type": "LORA", "sublayers": ["attention", "ffn"], "r": 2, "lora_alpha": 4}
    adapters = {"qformer": lora | {"sublayers": ["ffn"]}, "llm": lora}
    model = build(model_section(family, adapters=adapters, llm_gradient_checkpointing=True))
    copied = copy.deepcopy(model)
    blocks = [part for part in copied.llm.modules() if "forward" in vars(part)]
    assert blocks and all(block.forward.args == (block,) for block in blocks)
    samples = {"image": torch.zeros(2, 3, 32, 32), "text_input": TEXTS, "text_output": TARGETS}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)  # as the runner's
        for _ in range(2):
            wrapped.train()(samples)["loss"].backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may be able to")
@pytest.mark.parametrize("wanted", ["8bit", "4bit"])
def test_quantized_weights_are_refused_where_there_is_no_gpu(wanted: str, model_section: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match=f"model.llm_load_in: {wanted} needs a GPU"):
        build(model_section("t5", llm_load_in=wanted))


def test_a_wrong_word_is_named_with_the_right_ones(model_section: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(model_section("t5", llm_load_in="2bit", kernels="slow"))
    for part in ("llm_load_in", "8bit", "4bit", "kernels", "fast", "plain"):
        assert part in str(caught.value)


def test_compiling_needs_a_compiler(model_section: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_peft.models.machine.shutil.which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model.compile_vision: .* compiler"):
        build(model_section("t5", compile_vision=True))


def test_a_compiled_encoder_gives_the_same(model_section: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled is the question here; what the compiler makes of it is torch's business, and takes a minute.
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    monkeypatch.setattr("lavis_peft.models.machine.shutil.which", lambda name: name)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fast, plain = build(model_section("t5", compile_vision=True)).eval(), build(model_section("t5")).eval()
    expected = plain.encode_images(image, TEXTS)[0]
    torch.testing.assert_close(fast.encode_images(image, TEXTS)[0], expected, rtol=1e-5, atol=1e-5)
    assert fast.visual_encoder._compiled_call_impl is not None
    assert list(fast.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rotary_frequencies_stay_in_full_precision(precision: str, model_section: Callable[..., dict]) -> None:
    if not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip("this transformers has no LLaMA")
    model = build(model_section("llama", llm_precision=precision))
    frequencies = [buffer for name, buffer in model.llm.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}


def test_base_weights_are_put_in_place(model_section: Callable[..., dict], tmp_path: Path) -> None:
    source = build(model_section("t5"))
    own = ("visual_encoder.", "t5_model.")
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(own)}
    torch.save({"model": {key: value for key, value in state.items() if "position_ids" not in key}}, tmp_path / "b.pth")
    model = build(model_section("t5", load_pretrained=True, pretrained=str(tmp_path / "b.pth")))
    assert not [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    for key, value in state.items():
        torch.testing.assert_close(model.state_dict()[key], value)


_MEASURE = """
import resource, sys, torch
import lavis_peft
lavis_peft.register()
from lavis_peft.models.language import build_language_model, read_config
import transformers.models.t5.modeling_t5
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
config = read_config(sys.argv[1], "t5", "model.t5_model")
before = peak()
model = build_language_model(sys.argv[1], config, "t5", "bf16", "model.t5_model", weights=True)
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_a_language_model_needs_no_more_memory_than_its_weights(tmp_path: Path) -> None:
    sizes = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 12, "num_decoder_layers": 12}
    config = transformers.T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout.split()[-1]) < 1.3


@pytest.mark.parametrize(
    ("gpu", "precision", "kernels", "fused"),
    [
        (False, "fp32", "fast", True),
        (False, "bf16", "fast", False),
        (True, "bf16", "fast", True),
        (False, "fp32", "plain", False),
        (True, "bf16", "plain", False),
    ],
)
def test_where_the_language_models_attention_is_fused(
    gpu: bool,
    precision: str,
    kernels: str,
    fused: bool,
    model_section: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model = build(model_section("t5", llm_precision=precision, kernels=kernels))
    found = getattr(model.llm.config, "_attn_implementation", None)
    assert fused_llm(model.spec) is fused
    assert fused or found in (None, "eager")
