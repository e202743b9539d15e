"""The InstructBLIP base on real small parts: shapes, batches, adapters, loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from peft import LoraConfig

import lavis_peft
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.paths import plugin_configs_dir

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

TEXTS = ["Question: is there a red circle? Short answer:", "what shape is it ?", "Question: the color"]
TARGETS = ["yes", "blue triangle", "a large green square"]
FAMILIES = ["t5", "llama"]
FFN = {"peft_type": "LORA", "sublayers": ["ffn"], "r": 2}
Section = Callable[..., dict[str, Any]]


def build(section: dict[str, Any], *, seed: int = 0) -> Any:
    """The model of a section, with weights large enough that no two answers score the same."""
    torch.manual_seed(seed)
    model = registry.get_model_class(section["arch"]).from_config(section)
    with torch.no_grad():
        for parameter in [model.query_tokens, *model.Qformer.parameters(), *model.projection.parameters()]:
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_scores_as_its_samples_do(family: str, model_section: Section) -> None:
    model = build(model_section(family))
    candidates = [["yes", "no", "blue"], ["red circle", "small"], ["a", "b", "c", "a large square"]]
    together = model.score_candidates(images(3), TEXTS, candidates)
    for i in range(3):
        alone = model.score_candidates(images(3)[i : i + 1], [TEXTS[i]], [candidates[i]])[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-4)
    assert [len(scores) for scores in together] == [3, 2, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_in_chunks_of_any_size(family: str, model_section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(model_section(family))
    candidates = [["yes", "no", "blue"], ["red circle", "small"], ["a"]]
    whole = torch.cat(model.score_candidates(images(3), TEXTS, candidates))
    monkeypatch.setattr("lavis_peft.models.scoring.ROWS", 2)
    torch.testing.assert_close(torch.cat(model.score_candidates(images(3), TEXTS, candidates)), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_generates_as_its_samples_do(family: str, model_section: Section) -> None:
    model = build(model_section(family))
    options = {"num_beams": 1, "max_length": 6}
    together = model.generate({"image": images(3), "prompt": TEXTS}, **options)
    alone = [model.generate({"image": images(3)[i : i + 1], "prompt": TEXTS[i]}, **options)[0] for i in range(3)]
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_adapters_and_only_them(
    family: str, model_section: Section, qformer_lora: dict[str, Any]
) -> None:
    model = build(
        model_section(family, adapters={**qformer_lora, "llm": {**qformer_lora["qformer"], "sublayers": ["attention"]}})
    )
    model.train()
    model({"image": images(3), "text_input": TEXTS, "text_output": TARGETS})["loss"].backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient == trainable
    assert all(
        "lora_" in name or name.startswith(("query_tokens", "ln_vision", model.projection_key)) for name in trainable
    )
    # lora_A multiplies lora_B's zeros at the first step, so lora_B shows what learns.
    moving = {name for name, parameter in model.named_parameters() if "lora_B" in name and parameter.grad.any()}
    dead = {
        name
        for name in trainable
        if "Qformer.bert.encoder.layer.3." in name and (".intermediate." in name or ".3.output." in name)
    }
    assert moving == {name for name in trainable - dead if "lora_B" in name}
    assert dead
    assert not model.visual_encoder.training


def test_full_and_frozen_parts(model_section: Section) -> None:
    model = build(model_section("t5", adapters={"qformer": "full", "llm": "frozen", "train": ["query_tokens"]}))
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"Qformer", "query_tokens"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_runner_saves_loads_again(
    family: str, model_section: Section, qformer_lora: dict[str, Any], tmp_path: Path
) -> None:
    section = model_section(family, adapters=qformer_lora)
    model = build(section)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {key: value for key, value in model.state_dict().items() if key in trained}
    for value in state.values():
        value.add_(0.01)
    torch.save({"model": state}, tmp_path / "checkpoint_best.pth")
    again = build({**section, "load_finetuned": False})
    again.load_state_dict({key: value for key, value in model.state_dict().items() if key not in trained} | state)
    expected = model.score_candidates(images(1), TEXTS[:1], [["yes", "no"]])[0]
    torch.testing.assert_close(again.score_candidates(images(1), TEXTS[:1], [["yes", "no"]])[0], expected)
    loaded = registry.get_model_class(section["arch"]).from_config(
        {**section, "load_finetuned": True, "finetuned": str(tmp_path / "checkpoint_best.pth")}
    )
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())


def test_a_checkpoint_that_lacks_a_key_or_has_a_foreign_one_is_refused(
    model_section: Section, qformer_lora: dict[str, Any]
) -> None:
    model = build(model_section("t5", adapters=qformer_lora))
    state = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = model.query_tokens.detach().clone()
    lora = next(name for name in state if "lora_A" in name)
    broken = {**{name: p + 1 for name, p in state.items() if name != lora}, "Qformer.bert.invented": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(broken)
    assert lora in str(caught.value)
    assert "Qformer.bert.invented" in str(caught.value)
    assert torch.equal(model.query_tokens, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_base_weights_load_under_plain_names(
    suffix: str, model_section: Section, qformer_lora: Any, tmp_path: Path
) -> None:
    source = build(model_section("t5"), seed=5)
    own = ("visual_encoder.", "t5_model.")
    state = {key: value.clone() for key, value in source.state_dict().items() if not key.startswith(own)}
    path = tmp_path / f"base{suffix}"
    if suffix == ".pth":
        torch.save({"model": {**state, "Qformer.cls.predictions.bias": torch.zeros(3)}}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    section = model_section("t5", adapters=qformer_lora, load_pretrained=True, pretrained=str(path))
    model = registry.get_model_class(section["arch"]).from_config(section)
    layer = model.Qformer.bert.encoder.layer[0].attention.self.query
    assert torch.equal(layer.base_layer.weight, state["Qformer.bert.encoder.layer.0.attention.self.query.weight"])
    assert torch.equal(model.query_tokens, state["query_tokens"])


@pytest.mark.parametrize("damage", ["missing", "foreign", "shape"])
def test_a_base_that_does_not_fit_is_refused_with_the_key(damage: str, model_section: Section, tmp_path: Path) -> None:
    source = build(model_section("t5"))
    own = ("visual_encoder.", "t5_model.")
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(own)}
    name = {"missing": "t5_proj.weight", "foreign": "opt_proj.weight", "shape": "query_tokens"}[damage]
    if damage == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(2, 2)
    torch.save({"model": state}, tmp_path / "base.pth")
    section = model_section("t5", load_pretrained=True, pretrained=str(tmp_path / "base.pth"))
    with pytest.raises(CheckpointError, match=name):
        registry.get_model_class(section["arch"]).from_config(section)


def test_every_problem_of_a_section_is_reported_at_once(model_section: Section) -> None:
    section = model_section(
        "t5",
        num_query_tokens=8,
        image_size="224",
        vit_precision="int8",
        freeze_vit=False,
        load_finetuned=True,
        adapters={"qformer": {"peft_type": "LORA", "sublayers": ["cross_atention"], "r": 0, "lora_alpha": 8}},
    )
    with pytest.raises(ConfigError) as caught:
        registry.get_model_class(section["arch"]).from_config(section)
    text = str(caught.value)
    for part in (
        "num_query_tokens",
        "did you mean 'num_query_token'",
        "image_size",
        "int8",
        "freeze_vit",
        "finetuned",
        "cross_atention",
        "model.adapters.qformer.r",
    ):
        assert part in text, part


def test_a_pattern_that_matches_nothing_is_found_before_weights_are_read(model_section: Section) -> None:
    adapters = {"qformer": {"peft_type": "LORA", "target_modules": ["no_such_layer"], "r": 2, "lora_alpha": 2}}
    section = model_section("t5", adapters=adapters, load_pretrained=True, pretrained="/no/such/file.pth")
    with pytest.raises(ConfigError, match="no_such_layer"):
        registry.get_model_class(section["arch"]).from_config(section)


@pytest.mark.parametrize(("family", "precision"), [("t5", "bf16"), ("llama", "fp16"), ("llama", "bf16")])
def test_half_precision_language_models_train_on_a_cpu(
    family: str, precision: str, model_section: Section, qformer_lora: dict[str, Any]
) -> None:
    section = model_section(family, llm_precision=precision, adapters=qformer_lora)
    model = registry.get_model_class(section["arch"]).from_config(section)
    assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16 if precision == "bf16" else torch.float16}
    model.train()
    loss = model({"image": images(2), "text_input": TEXTS[:2], "text_output": TARGETS[:2]})["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.query_tokens.grad).all()
    scores = model.eval().score_candidates(images(2), TEXTS[:2], [["yes", "no"]] * 2)
    assert all(torch.isfinite(own).all() for own in scores)


def test_vicuna_texts_begin_with_the_end_token(model_section: Section) -> None:
    model = build(model_section("llama"))
    tokenizer = model.llm_tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("</s>",) * 3
    assert tokenizer.pad_token == "[PAD]"
    assert tokenizer("red circle").input_ids[0] == tokenizer.eos_token_id
    assert model.llm_model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def _defaults(path: Path) -> Any:
    return OmegaConf.load(path).model


@pytest.mark.parametrize("path", sorted((plugin_configs_dir() / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_default_builds_its_shape_without_a_weight(path: Path) -> None:
    section = _defaults(path)
    cls = registry.get_model_class(section.arch)
    assert cls.default_config_path(section.model_type) == str(path)
    if cls.family == "llama" and not hasattr(transformers, "LlamaForCausalLM"):
        with pytest.raises(ConfigError, match=r"needs transformers 4\.28 .* remedy"):
            cls.on_meta(section)
        return
    model = cls.on_meta(section)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_published_sizes_of_flant5xl() -> None:
    section = _defaults(plugin_configs_dir() / "models" / "blip2_t5_instruct_peft_flant5xl.yaml")
    section.adapters = {
        "qformer": {
            "peft_type": "LORA",
            "sublayers": ["self_attention", "cross_attention", "ffn"],
            "r": 8,
            "lora_alpha": 8,
        }
    }
    model = registry.get_model_class(section.arch).on_meta(section)
    adapters = sum(p.numel() for n, p in model.Qformer.named_parameters() if p.requires_grad)
    base = sum(p.numel() for n, p in model.Qformer.named_parameters() if not p.requires_grad)
    assert adapters == 2_125_824
    assert base == 185_660_160
    assert model.query_tokens.shape == (1, 32, 768)
    assert model.t5_proj.weight.shape == (2048, 768)
    assert sum(p.numel() for p in model.t5_model.parameters()) == 2_849_757_184


def test_a_flan_t5_saved_by_transformers_5_computes_the_same_everywhere(model_section: Section, tmp_path: Path) -> None:
    """transformers 5 writes an untied T5 as tied, with `scale_decoder_outputs: false`; 4.x would tie and scale it."""
    section = model_section("t5")
    model = build(section)
    folder = tmp_path / "t5"
    shutil.copytree(section["t5_model"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": True, "scale_decoder_outputs": False})
    )
    again = build({**section, "t5_model": str(folder)})
    scores = [each.score_candidates(images(1), TEXTS[:1], [["yes", "no"]])[0] for each in (model, again)]
    torch.testing.assert_close(scores[1], scores[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_counts_what_the_model_has(family: str, model_section: Section, qformer_lora: dict[str, Any]) -> None:
    section = model_section(family, adapters=qformer_lora)
    cls = registry.get_model_class(section["arch"])
    model, shape = cls.from_config(section), cls.on_meta(section)
    assert {name: p.shape for name, p in shape.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert shape.query_tokens.device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_precision_model_trains_under_an_outer_autocast(
    family: str, model_section: Section, qformer_lora: dict[str, Any]
) -> None:
    """As with run.amp: LAVIS's loop autocasts to fp16 around a language model that is held in bf16."""
    section = model_section(family, llm_precision="bf16", adapters=qformer_lora)
    model = registry.get_model_class(section["arch"]).from_config(section).train()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model({"image": images(2), "text_input": TEXTS[:2], "text_output": TARGETS[:2]})["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.query_tokens.grad).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_adalora_trains_the_same_in_every_precision(precision: str, model_section: Section) -> None:
    adapter = {"peft_type": "ADALORA", "sublayers": ["attention"], "init_r": 4, "target_r": 2, "lora_alpha": 4}
    section = model_section("t5", llm_precision=precision, adapters={"llm": adapter, "train": []})
    model = registry.get_model_class(section["arch"]).from_config(section)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not [name for name in trained if not any(kind in name for kind in ("lora_A", "lora_B", "lora_E"))]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"qformer": {"hidden_size": 25, "num_attention_heads": 4}}, "model.qformer"),
        ({"qformer": {"hidden_size": "abc"}}, "model.qformer"),
        ({"t5_model": {"d_model": "abc"}}, "model.t5_model"),
        ({"llm_tokenizer": 5}, "model.llm_tokenizer"),
        (
            {"adapters": {"qformer": {"peft_type": "LORA", "sublayers": ["ffn"], "r": 2, "exclude_modules": "(("}}},
            "qformer",
        ),
        (
            {"adapters": {"llm": {"peft_type": "LORA", "sublayers": ["ffn"], "r": 2, "bias": "all"}}},
            "model.adapters.llm.bias",
        ),
    ],
)
def test_a_value_that_builds_nothing_is_a_config_error(changes: dict, key: str, model_section: Section) -> None:
    section = model_section("t5", **changes)
    if "exclude_modules" in str(changes) and not hasattr(LoraConfig(), "exclude_modules"):
        pytest.skip("this peft has no exclude_modules")
    with pytest.raises(ConfigError, match=key):
        registry.get_model_class(section["arch"]).from_config(section)
