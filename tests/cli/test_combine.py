"""`lavis-peft combine` on small models: the sum to the number, choosing by a score, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.adapters.merge import merged_state  # noqa: E402
from lavis_peft.cli import main  # noqa: E402
from lavis_peft.runners.checkpoints import identity, trained_state  # noqa: E402

Section = Callable[..., dict[str, Any]]
LORA = {"peft_type": "LORA", "sublayers": ["self_attention", "ffn"], "r": 2, "lora_alpha": 4}
RS = {"peft_type": "LORA", "sublayers": ["ffn", "cross_attention"], "r": 3, "lora_alpha": 4, "use_rslora": True}
ADALORA = {"peft_type": "ADALORA", "sublayers": ["self_attention"], "init_r": 4, "target_r": 2, "lora_alpha": 8}
LLM = {"peft_type": "LORA", "sublayers": ["attention"], "r": 2, "lora_alpha": 4}


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["combine", *map(str, arguments)])


def combined(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def trained(model_section: Section, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Make a checkpoint as a run writes it, and the model in it; base weights are the same each time."""

    def make(name: str, adapters: dict[str, Any], family: str = "t5", **changes: Any) -> tuple[Path, Any]:
        model_type = "flant5xl" if family == "t5" else "vicuna7b"
        section = model_section(family, adapters=adapters, model_type=model_type, **changes)
        torch.manual_seed(0)
        model = registry.get_model_class(section["arch"]).from_config(section)
        generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        if model.adalora is not None:
            model.adalora.slots[0].matrices[1].data[1] = 0  # a rank that was taken away
        run = {"runner": "runner_peft", "task": "multiple_choice_vqa"}
        config = {"model": section, "datasets": {"easy_vqa": {"type": "default"}}, "run": run}
        torch.save({"model": trained_state(model), "config": config, **identity(model)}, tmp_path / name)
        return tmp_path / name, model.eval()

    return make


def loaded(path: Path) -> Any:
    """The model that a written YAML describes."""
    section = yaml.safe_load(path.with_suffix(".yaml").read_text())["model"]
    torch.manual_seed(0)
    return registry.get_model_class(section["arch"]).from_config(section).eval()


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        key: value for key, value in merged_state(model).items() if torch.is_tensor(value) and value.is_floating_point()
    }


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_cat_adds_what_each_adapter_adds(trained: Any, tmp_path: Path, family: str) -> None:
    first, model_a = trained("a.pth", {"qformer": LORA, "llm": LLM}, family)
    second, model_b = trained("bb.pth", {"qformer": RS}, family)
    third, model_c = trained("ccc.pth", {"qformer": ADALORA}, family)
    out = tmp_path / "out.pth"
    result = combined(first, second, third, "--method", "cat", "--weights", "0.7,-0.4,0.2", "--output", out)
    assert result["ranks"] == [2, 6]  # ffn: 2 + 3, self-attention: 2 + 4 and one with 2 + 3, cross-attention: 3
    _, plain = trained("d.pth", {"qformer": {**LORA, "init_lora_weights": True}}, family)
    for module in plain.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["default"].weight.data.zero_()
    base, found = weights(plain), weights(loaded(out))
    shares = (0.7, -0.4, 0.2)
    each = [weights(model) for model in (model_a, model_b, model_c)]
    for key, value in found.items():
        if key.startswith(("query_tokens", "ln_vision", "t5_proj", "llm_proj")):
            expected = sum(share * own[key] for share, own in zip(shares, each, strict=True)) / sum(shares)
        else:
            expected = base[key] + sum(share * (own[key] - base[key]) for share, own in zip(shares, each, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=key)
    assert sum(not torch.equal(found[key], base[key]) for key in found) > 20


@pytest.mark.parametrize("method", ["svd", "ties", "lego", "dare_linear_svd"])
def test_the_result_is_an_ordinary_adapter_of_the_asked_rank(trained: Any, tmp_path: Path, method: str) -> None:
    first, _ = trained("a.pth", {"qformer": LORA})
    second, _ = trained("bb.pth", {"qformer": RS})
    out = tmp_path / "out.pth"
    rank = () if method == "ties" else ("--rank", 3)
    result = combined(first, second, "--method", method, *rank, "--output", out)
    assert result["ranks"] == ([3, 3] if method != "ties" else [2, 3])
    model = loaded(out)
    layers = {name: m for name, m in model.Qformer.bert.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 4 * 6 + 2 * 4
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}
    content = torch.load(out, weights_only=True)
    assert content["combined"]["method"] == method
    assert content["lavis_peft"]["adapters"]["qformer"]["sublayers"] == ["self_attention", "cross_attention", "ffn"]
    again = tmp_path / "again.pth"
    combined(first, second, "--method", method, *rank, "--output", again)
    state, repeated = content["model"], torch.load(again, weights_only=True)["model"]
    assert all(torch.equal(state[key], repeated[key]) for key in state)


def test_layers_chosen_one_by_one_are_written_by_name(trained: Any, tmp_path: Path) -> None:
    first, _ = trained("a.pth", {"qformer": {**LORA, "layers_to_transform": [1]}})
    second, _ = trained("bb.pth", {"qformer": {**LORA, "sublayers": ["ffn"], "layers_to_transform": [2]}})
    out = tmp_path / "out.pth"
    combined(first, second, "--method", "svd", "--output", out)
    names = [name for name, module in loaded(out).Qformer.bert.named_modules() if hasattr(module, "lora_A")]
    assert len(names) == 6 + 4
    assert all(".layer.1." in name or ".layer.2." in name for name in names)


def test_the_best_on_the_held_out_questions_is_written(run_file: Any, tmp_path: Path) -> None:
    config = run_file()
    whole = yaml.safe_load(config.read_text())
    checkpoints = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = registry.get_model_class(whole["model"]["arch"]).from_config(whole["model"])
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        path = tmp_path / f"{seed}.pth"
        torch.save({"model": trained_state(model), **identity(model)}, path)
        checkpoints.append(path)
    methods = ["--method", "cat", "--method", "svd", "--method", "linear"]
    out = tmp_path / "best.pth"
    result = combined(*checkpoints, *methods, "--evaluate", config, "--output", out)
    assert (result["split"], result["questions"], result["is_test"]) == ("val", 4, False)
    rows = {row["name"]: row for row in result["candidates"]}
    assert list(rows) == [*map(str, checkpoints), "cat", "svd", "linear"]
    assert rows[result["method"]]["score"] == max(rows[name]["score"] for name in ("cat", "svd", "linear"))
    assert rows["cat"]["ranks"] == [4, 4] and rows["svd"]["ranks"] == [2, 2]
    written = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert written["datasets"] == whole["datasets"]
    assert written["model"]["finetuned"] == str(out)
    assert not (tmp_path / "output").exists()


def test_a_config_without_a_valid_split_is_scored_on_its_test_split(
    run_file: Any, trained: Any, tmp_path: Path
) -> None:
    config = run_file(sizes={"val": 0}, valid_splits=None)
    adapters = yaml.safe_load(config.read_text())["model"]["adapters"]
    first, _ = trained("a.pth", adapters)
    second, _ = trained("bb.pth", adapters)
    result = invoke(first, second, "--method", "svd", "--evaluate", config, "--output", tmp_path / "out.pth")
    assert result.exit_code == 0, result.output
    assert "test, 5 questions" in result.output
    assert "tested on" in result.output


@pytest.mark.parametrize(
    ("adapters", "reason"),
    [
        ({"qformer": "full", "llm": LLM}, "the whole part was tuned"),
        ({"qformer": {**LORA, "use_dora": True}}, "use_dora"),
        ({"qformer": {**LORA, "init_lora_weights": "pissa"}}, "took a part out of the base"),
        ({"qformer": {**LORA, "bias": "all"}}, "bias: all"),
        ({"qformer": {"peft_type": "IA3", "sublayers": ["ffn"]}}, "IA3 doesn't add a product"),
        ({"qformer": LORA, "train": ["projection"]}, "trained [projection] besides"),
        ({}, "has no adapter to combine"),
    ],
)
def test_what_can_not_be_combined_is_refused_with_the_reason(
    trained: Any, tmp_path: Path, adapters: dict[str, Any], reason: str
) -> None:
    first, _ = trained("a.pth", {"qformer": LORA})
    second, _ = trained("bb.pth", adapters)
    result = invoke(first, second, "--method", "svd", "--output", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert reason in result.output
    assert "bb.pth" in result.output
    assert not list(tmp_path.glob("*out*"))


def test_every_problem_of_the_checkpoints_is_reported_at_once(trained: Any, tmp_path: Path) -> None:
    first, _ = trained("a.pth", {"qformer": LORA})
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    result = invoke(
        first, tmp_path / "foreign.pth", tmp_path / "gone.pth", "--method", "svd", "--output", tmp_path / "o.pth"
    )
    assert result.exit_code == 2
    assert "has no `lavis_peft` entry" in result.output
    assert "no such checkpoint file" in result.output


def test_adapters_of_different_base_weights_are_not_combined(trained: Any, tmp_path: Path) -> None:
    paths = [trained(name, {"qformer": LORA})[0] for name in ("a.pth", "bb.pth")]
    for number, path in enumerate(paths):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "frozen": {"vision": "same", "qformer": f"number {number}"}}, path)
    result = invoke(*paths, "--method", "svd", "--output", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert "its qformer had other base weights" in result.output


def test_models_of_two_families_are_not_combined(trained: Any, tmp_path: Path) -> None:
    first, _ = trained("a.pth", {"qformer": LORA})
    second, _ = trained("bb.pth", {"qformer": LORA}, "llama")
    result = invoke(first, second, "--method", "svd", "--output", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert "arch blip2_vicuna_instruct_peft" in result.output


def test_every_problem_of_the_command_line_is_reported_at_once(tmp_path: Path) -> None:
    taken = tmp_path / "out.pth"
    taken.write_text("")
    result = invoke("a", "b", "--method", "tis", "--weights", "1,2,3", "--rank", 0, "--density", 2, "--output", taken)
    assert result.exit_code == 2
    for part in ("did you mean 'ties'", "3 weights for 2", "--rank 0", "--density 2", "exists already"):
        assert part in result.output
    assert invoke("a", "b", "--method", "all", "--output", tmp_path / "o.pth").exit_code == 2
    idle = invoke("a", "b", "--method", "cat", "--rank", 3, "--density", 0.3, "--output", "o.pth").output
    assert "--rank: is not for cat" in idle and "--density: is not for cat" in idle
    assert "sum must be" in invoke("a", "b", "--method", "svd", "--weights", "1,-1", "--output", "o.pth").output


def test_questions_that_are_not_there_are_missed_before_the_work(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lavis_peft.combine.job import Job

    config = run_file()
    whole = yaml.safe_load(config.read_text())
    model = registry.get_model_class(whole["model"]["arch"]).from_config(whole["model"])
    for name in ("a.pth", "b.pth"):
        torch.save({"model": trained_state(model), **identity(model)}, tmp_path / name)
    (tmp_path / "data" / "val.json").unlink()
    monkeypatch.setattr(Job, "candidates", None)
    given = (tmp_path / "a.pth", tmp_path / "b.pth", "--method", "svd", "--evaluate", config)
    result = invoke(*given, "--output", tmp_path / "out.pth")
    assert result.exit_code == 2 and "val.json" in result.output, result.output
