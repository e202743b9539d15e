"""Several adapters in one model, against models that hold just one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.adapters.merge import adapted_layers  # noqa: E402
from lavis_peft.adapters.methods import known_peft_types  # noqa: E402
from lavis_peft.adapters.spec import parse_adapters  # noqa: E402
from lavis_peft.errors import CheckpointError, ConfigError  # noqa: E402
from lavis_peft.models.beside import hindrances  # noqa: E402
from lavis_peft.runners.checkpoints import identity, trained_state  # noqa: E402

Section = Callable[..., dict[str, Any]]
LORA = {"peft_type": "LORA", "sublayers": ["self_attention", "cross_attention", "ffn"], "r": 2, "lora_alpha": 4}
ONE = {"qformer": LORA, "llm": {"peft_type": "LORA", "sublayers": ["attention", "ffn"], "r": 3, "lora_alpha": 4}}
OTHER = {"qformer": {**LORA, "sublayers": ["ffn"], "r": 4, "use_rslora": True}}
THIRD = {"llm": {"peft_type": "LORA", "sublayers": ["attention"], "r": 2, "lora_alpha": 8}, "train": ["projection"]}
TEXTS = [
    "what color is the picture ?",
    "is there a red circle ?",
    "what shape ?",
    "how many ?",
    "what is in the image ?",
]
CANDIDATES = [["red", "blue"], ["yes"], ["circle", "square", "triangle"], ["a", "b c"], ["no", "not yes"]]


@pytest.fixture
def world(model_section: Section, tmp_path: Path) -> Callable[..., Any]:
    """Make a model of one base with adapters, its trained weights drawn by a seed, and its checkpoint."""

    def make(family: str, adapters: dict[str, Any] | None, seed: int = 0) -> tuple[Any, Path]:
        section = model_section(family, model_type="flant5xl" if family == "t5" else "vicuna7b")
        cls = registry.get_model_class(section["arch"])
        torch.manual_seed(0)
        if adapters is not None:
            section["adapters"] = adapters
        model = cls.from_config(section)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and seed:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        path = tmp_path / f"{family}{seed}.pth"
        torch.save({"model": trained_state(model), **identity(model)}, path)
        return model.eval(), path

    return make


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def scores(model: Any, image: torch.Tensor, **given: Any) -> torch.Tensor:
    return torch.cat(model.score_candidates(image, TEXTS, CANDIDATES, **given))


def same(first: torch.Tensor, second: torch.Tensor) -> None:
    # Two models round differently, and random weights enlarge it; other adapters differ by whole numbers.
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_each_adapter_gives_what_it_gives_alone(world: Any, image: torch.Tensor, family: str) -> None:
    alone = {name: world(family, adapters, seed) for seed, (name, adapters) in enumerate(
        {"one": ONE, "other": OTHER, "third": THIRD}.items(), start=1)}  # fmt: skip
    model, _ = world(family, None)
    base = scores(model, image)
    for name, (_, path) in alone.items():
        model.add_adapter(name, path)
    assert model.adapter_names == ["one", "other", "third"]
    assert model.active_adapter is None
    assert torch.equal(scores(model, image), base)
    for name in ("other", "one", "third", "one"):
        model.set_adapter(name)
        assert model.active_adapter == name
        same(scores(model, image), scores(alone[name][0], image))
    model.set_adapter(None)
    assert torch.equal(scores(model, image), base)
    assert len({round(scores(each, image).sum().item(), 3) for each, _ in alone.values()} | {base.sum().item()}) == 4


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_switching_moves_no_base_weight(world: Any, family: str) -> None:
    model, _ = world(family, None)
    model.add_adapter("one", world(family, ONE, 1)[1])
    own = ("query_tokens", "ln_vision", model.projection_key)

    def base() -> dict[str, tuple[int, torch.Tensor]]:
        state = {k: p for k, p in model.named_parameters() if "lora_" not in k and not k.startswith(own)}
        return {key: (parameter.data_ptr(), parameter.detach().clone()) for key, parameter in state.items()}

    before = base()
    tokens = model.query_tokens.detach().clone()
    for name in ("one", None, "one"):
        model.set_adapter(name)
        after = base()
        assert after.keys() == before.keys()
        assert all(after[key][0] == before[key][0] and torch.equal(after[key][1], before[key][1]) for key in before)
        assert torch.equal(model.query_tokens, tokens) == (name is None)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_every_sample_of_a_batch_has_its_own_adapter(world: Any, image: torch.Tensor, family: str) -> None:
    alone = {"one": world(family, ONE, 1), "other": world(family, OTHER, 2)}
    model, _ = world(family, None)
    single = {None: scores(model, image)}
    texts = {None: model.predict_answers({"image": image, "text_input": TEXTS}, num_beams=3)}
    for name, (tuned, path) in alone.items():
        single[name] = scores(tuned, image)
        texts[name] = tuned.predict_answers({"image": image, "text_input": TEXTS}, num_beams=3)
        model.add_adapter(name, path)
    names = ["other", "one", None, "other", "one"]
    expected = [single[name].split([len(own) for own in CANDIDATES])[row] for row, name in enumerate(names)]
    same(scores(model, image, adapter_names=names), torch.cat(expected))
    answers = model.predict_answers({"image": image, "text_input": TEXTS, "adapter": names}, num_beams=3)
    assert answers == [texts[name][row] for row, name in enumerate(names)]
    targets = {"text_input": TEXTS, "text_output": ["red"] * 5}
    losses = [alone[n][0] if n else world(family, None)[0] for n in names]
    each = [
        m({"image": image[[row]], "text_input": [TEXTS[row]], "text_output": ["red"]})["loss"]
        for row, m in enumerate(losses)
    ]
    same(model({"image": image, **targets, "adapter": names})["loss"], torch.stack(each).mean())
    # Nothing of it stays.
    assert torch.equal(scores(model, image), single[None])


def test_a_model_with_an_adapter_of_its_own_takes_more(world: Any, image: torch.Tensor) -> None:
    model, _ = world("t5", ONE, 1)
    other, path = world("t5", OTHER, 2)
    trains = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    own = scores(model, image)
    model.add_adapter("other", path)
    assert model.adapter_names == ["default", "other"] and model.active_adapter == "default"
    assert torch.equal(scores(model, image), own)
    model.set_adapter("other")
    same(scores(model, image), scores(other, image))
    model.set_adapter("default")
    assert torch.equal(scores(model, image), own)
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == trains
    with pytest.raises(ConfigError, match="base's own query tokens"):
        model.set_adapter(None)
    with pytest.raises(ConfigError, match="left the base's"):
        model.add_adapter("third", world("t5", THIRD, 3)[1])


def test_an_adalora_is_added_as_the_lora_that_it_has_become(world: Any, image: torch.Tensor) -> None:
    adalora = {"peft_type": "ADALORA", "sublayers": ["ffn"], "init_r": 4, "target_r": 2, "lora_alpha": 8}
    tuned, path = world("t5", {"qformer": adalora}, 4)
    model, _ = world("t5", None)
    model.add_adapter("ada", path)
    model.add_adapter("one", world("t5", ONE, 1)[1])
    model.set_adapter("ada")
    same(scores(model, image), scores(tuned, image))


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "IA3"},
        {"peft_type": "LOHA", "r": 2},
        # With numbers besides what trains, and with whole numbers.
        {"peft_type": "DELORA", "r": 2},
        {"peft_type": "SUPERTUNING", "sparsity": 0.9},
        # With sizes that a checkpoint decides.
        {"peft_type": "ADAMSS", "r": 8, "num_subspaces": 3, "subspace_rank": 2},
        {"peft_type": "LN_TUNING"},
    ],
)
def test_other_tuners_are_switched_and_not_mixed(world: Any, image: torch.Tensor, settings: dict[str, Any]) -> None:
    if settings["peft_type"] not in known_peft_types():
        pytest.skip(f"the installed peft has no {settings['peft_type']}")
    adapters = {"qformer": {**settings, "sublayers": ["ffn"]}}
    first, path = world("t5", adapters, 1)
    second, more = world("t5", adapters, 2)
    model, _ = world("t5", None)
    model.add_adapter("first", path)
    model.add_adapter("second", more)
    for name, alone in (("second", second), ("first", first)):
        model.set_adapter(name)
        same(scores(model, image), scores(alone, image))
    with pytest.raises(ConfigError, match="peft mixes LORA alone"):
        scores(model, image, adapter_names=["first"] * 5)
    with pytest.raises(ConfigError, match="of one type"):
        model.add_adapter("third", world("t5", ONE, 3)[1])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_norms_that_an_adapter_has_not_are_the_bases(world: Any, image: torch.Tensor, family: str) -> None:
    norms = {"peft_type": "LN_TUNING"}
    alone = {
        "all": world(family, {"qformer": norms, "llm": norms}, 1),
        "some": world(family, {"qformer": {**norms, "sublayers": ["ffn.query"]}}, 2),
        "others": world(family, {"llm": {**norms, "sublayers": ["final"]}}, 3),
    }
    model, _ = world(family, None)
    base = scores(model, image)
    for name, (_, path) in alone.items():
        model.add_adapter(name, path)
    for name in ("some", "all", "others", "some"):
        model.set_adapter(name)
        same(scores(model, image), scores(alone[name][0], image))
        assert not torch.allclose(scores(model, image), base, atol=0.01)
    model.set_adapter(None)
    assert torch.equal(scores(model, image), base)


def test_what_can_not_be_shared_or_mixed_is_refused(world: Any, image: torch.Tensor, tmp_path: Path) -> None:
    model, _ = world("t5", None)
    model.add_adapter("one", world("t5", ONE, 1)[1])
    for adapters, reason in (
        ({"qformer": "full"}, "full changes the base's own weights"),
        ({"qformer": {**LORA, "init_lora_weights": "pissa"}}, "takes a part out of the base"),
        ({"qformer": {"peft_type": "VERA", "sublayers": ["ffn"]}}, "qformer: VERA has tensors that peft makes for one"),
    ):
        with pytest.raises(ConfigError, match=reason):
            model.add_adapter("x", world("t5", adapters, 5)[1])
    for name in ("one", "a.b", "default", ""):
        with pytest.raises(ConfigError, match="adapter name"):
            model.add_adapter(name, world("t5", OTHER, 2)[1])
    with pytest.raises(CheckpointError, match="this model is"):
        model.add_adapter("x", world("llama", OTHER, 2)[1])
    with pytest.raises(ConfigError, match="did you mean 'one'"):
        model.set_adapter("onne")
    with pytest.raises(ConfigError, match="2 adapter names for 5 samples"):
        scores(model, image, adapter_names=["one", None])
    model.add_adapter("dora", world("t5", {"qformer": {**LORA, "use_dora": True}}, 6)[1])
    with pytest.raises(ConfigError, match="no DoRA in one batch"):
        scores(model, image, adapter_names=["dora"] * 5)
    model.train()
    with pytest.raises(ConfigError, match="for evaluation"):
        scores(model, image, adapter_names=["one"] * 5)
    assert model.adapter_names == ["one", "dora"]


@pytest.mark.skipif("MISS" not in known_peft_types(), reason="the installed peft has no MISS")
@pytest.mark.parametrize("form", ["bat", "mini"])
def test_a_form_that_all_adapters_of_a_layer_would_get_is_refused(form: str) -> None:
    section = {"peft_type": "MISS", "sublayers": ["ffn"], "r": 8, "init_weights": form}
    (reason,) = hindrances(parse_adapters({"qformer": section}, llm_family="t5"))
    assert reason == f"qformer.init_weights: {form}: peft computes all of a layer's adapters as it does the first"
    assert not hindrances(parse_adapters({"qformer": {**section, "init_weights": True}}, llm_family="t5"))


def test_a_refused_adapter_leaves_the_model_as_it_was(world: Any, image: torch.Tensor, tmp_path: Path) -> None:
    model, _ = world("t5", None)
    base, keys = scores(model, image), set(model.state_dict())
    path = world("t5", ONE, 1)[1]
    content = torch.load(path, weights_only=True)
    content["model"].pop(next(key for key in content["model"] if "lora_A" in key))
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="missing"):
        model.add_adapter("one", path)
    assert set(model.state_dict()) == keys and not model.adapter_names
    assert torch.equal(scores(model, image), base)
    assert not any(adapted_layers(module) for module in model.adapter_parts().values())
    assert json.dumps(model.adapter_names) == "[]"
