"""Adapters to peft's layout and back, and between our Q-Former and transformers'."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402  after the plugin mended what is broken on this stack
from lavis.common.registry import registry  # noqa: E402

from lavis_peft.adapters.method_table import METHODS  # noqa: E402
from lavis_peft.adapters.methods import known_peft_types  # noqa: E402
from lavis_peft.cli import main  # noqa: E402

Section = Callable[..., dict[str, Any]]
TunedRun = Callable[..., tuple[Path, Path, Any]]
QFORMER = {"sublayers": ["self_attention", "cross_attention", "ffn"]}
LLM = {"sublayers": ["attention", "ffn"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"output.dense": 3}},
    "bias": {"peft_type": "LORA", "r": 2, "bias": "lora_only"},
    "rslora": {"peft_type": "LORA", "r": 2, "use_rslora": True},
    "dora": {"peft_type": "LORA", "r": 2, "use_dora": True},
    "loha": {"peft_type": "LOHA", "r": 2},
    "ia3": {"peft_type": "IA3"},
    "hra": {"peft_type": "HRA", "r": 2},
    "vera": {"peft_type": "VERA", "r": 8},
    "psoft": {"peft_type": "PSOFT", "r": 4},
    "frod": {"peft_type": "FROD", "progressbar": False},
    "adamss": {"peft_type": "ADAMSS", "r": 8, "num_subspaces": 3, "subspace_rank": 2},
    "norms": {"peft_type": "LN_TUNING"},
}
#: Settings -> words of the Q-Former, where not all go together: FROD's kinds must be of one size.
WORDS = {"frod": ["self_attention", "ffn"]}
#: Settings -> a layer of theirs with another name in transformers' Q-Former.
RENAMED = {"norms": ("embeddings.layernorm", "embeddings.LayerNorm")}
TEXTS = ["what color is the picture ?", "is there a circle ?", "how many"]
needs_instructblip = pytest.mark.skipif(
    not hasattr(transformers, "InstructBlipForConditionalGeneration"),
    reason=f"transformers {transformers.__version__} has no InstructBLIP",
)


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def of(config: Path, checkpoint: Path) -> tuple[object, ...]:
    return "--cfg-path", config, "--checkpoint", checkpoint


def both(method: str) -> dict[str, Any]:
    """A method on both parts; of norms, all that there are."""
    qformer = {"sublayers": WORDS.get(method, QFORMER["sublayers"])}
    if SETTINGS[method]["peft_type"] not in known_peft_types():
        pytest.skip(f"the installed peft has no {SETTINGS[method]['peft_type']}")
    settings, words = SETTINGS[method], {} if method == "norms" else {"qformer": qformer, "llm": LLM}
    # Patterns are of the Q-Former's names, and T5 has no biases.
    llm = {key: value for key, value in settings.items() if key not in ("rank_pattern", "bias")}
    return {"qformer": {**words.get("qformer", {}), **settings}, "llm": {**words.get("llm", {}), **llm}}


@pytest.mark.parametrize("layout", ["peft", "peft-hf"])
@pytest.mark.parametrize("method", SETTINGS)
def test_what_is_exported_and_imported_is_the_same_to_the_bit(
    method: str, layout: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    settings = SETTINGS[method]
    config, checkpoint, model = tuned_run(model_section("t5", adapters=both(method)), noise=0.1)
    run("export", *of(config, checkpoint), "--output", tmp_path / "out", "--format", layout)
    names = list(load_file(tmp_path / "out" / "qformer" / "adapter_model.safetensors"))
    theirs, ours = RENAMED.get(method, ("attention.attention.query", "attention.self.query"))
    common = [f"base_model.{name}" for name in METHODS[settings["peft_type"]].shared]
    places = [f"base_model.model.{place}." for place in ("encoder.layer", "embeddings")]
    assert all(name.startswith((*places, *common)) for name in names)
    assert any((theirs if layout == "peft-hf" else ours) in name for name in names)
    found = run("import", "--cfg-path", config, "--adapter", tmp_path / "out", "--output", tmp_path / "again.pth")
    state, again = (torch.load(path, weights_only=True)["model"] for path in (checkpoint, tmp_path / "again.pth"))
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    words = WORDS.get(method, QFORMER["sublayers"])
    for part, given, more in (("qformer", words, "embeddings"), ("llm", LLM["sublayers"], "final")):
        assert found["adapters"][part]["sublayers"] == given + [more] * (method == "norms")
        assert found["adapters"][part]["peft_type"] == settings["peft_type"]
    section = yaml.safe_load((tmp_path / "again.yaml").read_text())["model"]
    loaded = registry.get_model_class(section["arch"]).from_config(section).eval()
    image = torch.randn(3, 3, 32, 32)
    candidates = [["red", "blue"], ["yes", "no"], ["two"]]
    torch.testing.assert_close(
        torch.cat(loaded.score_candidates(image, TEXTS, candidates)),
        torch.cat(model.score_candidates(image, TEXTS, candidates)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.skipif("ADAMSS" not in known_peft_types(), reason="the installed peft has no ADAMSS")
def test_an_export_whose_rows_peft_groups_otherwise_is_refused(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be read without a word, and add what was trained to other rows."""
    from peft.tuners.adamss import layer

    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both("adamss")), noise=0.3)
    monkeypatch.setattr(layer, "clustering_Z", lambda found, count, _: (torch.arange(len(found)) % count, count))
    arguments = [*map(str, of(config, checkpoint)), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 1
    assert "the exported adapter" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["peft", "peft-hf"])
def test_norms_of_a_half_precision_model_are_exported(
    layout: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    """Put back by peft too, whose copies some versions make float32."""
    config, checkpoint, _ = tuned_run(model_section("t5", adapters=both("norms"), llm_precision="bf16"), noise=0.1)
    found = run("export", *of(config, checkpoint), "--output", tmp_path / "out", "--format", layout)
    assert found["difference"] == 0
    assert found["parts"]["llm"]["layers"] == 6 + 4 + 2
    tensors = load_file(tmp_path / "out" / "llm" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.fixture
def hf(model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> Callable[..., tuple]:
    """A run of ours, and transformers' InstructBLIP with the same base weights."""

    def make(family: str, adapters: dict[str, Any]) -> tuple[Path, Path, Any, Any]:
        from lavis_peft.models.hf_model import write_hf
        from lavis_peft.models.tuned import read_tuned

        section = model_section(family, adapters=adapters)
        config, checkpoint, model = tuned_run(section, noise=0.1)
        own = yaml.safe_load(config.read_text())["model"]
        folder = tmp_path / "hf"
        folder.mkdir()
        write_hf(read_tuned(type(model), own, None), folder, None)
        return (
            config,
            checkpoint,
            model,
            transformers.InstructBlipForConditionalGeneration.from_pretrained(folder).eval(),
        )

    return make


def outputs_of(model: Any, hf: Any, folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The visual prefix and the language model's logits, ours and theirs."""
    from lavis_peft.models import hf_check

    image = torch.randn(len(hf_check._PROMPTS), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    words = hf_check._same_tokens(model, folder)
    with torch.no_grad():
        prefix, _ = model.encode_images(image, list(hf_check._PROMPTS))
        ours = [prefix, hf_check._logits(model.llm, prefix, words["llm"])]
        theirs = [
            hf_check._prefix(hf, image, words["qformer"]),
            hf_check._logits(hf.language_model, prefix, words["llm"]),
        ]
    width = min(ours[1].shape[-1], theirs[1].shape[-1])
    return [ours[0], ours[1][..., :width]], [theirs[0], theirs[1][..., :width]]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return max(apart) < 1e-3  # ln_vision's epsilon is another in transformers


@needs_instructblip
@pytest.mark.parametrize(
    ("family", "method"),
    [
        *[("t5", method) for method in ("lora", "dora", "ia3", "frod", "norms")],
        *[("llama", method) for method in ("rslora", "frod", "norms")],
    ],
)
def test_peft_itself_puts_an_export_into_transformers_instructblip(
    family: str, method: str, hf: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    config, checkpoint, model, theirs = hf(family, both(method))
    run("export", *of(config, checkpoint), "--output", tmp_path / "out", "--format", "peft-hf")
    assert not close(*outputs_of(model, theirs, tmp_path / "hf"))
    theirs.qformer = PeftModel.from_pretrained(theirs.qformer, str(tmp_path / "out" / "qformer"))
    theirs.language_model = PeftModel.from_pretrained(theirs.language_model, str(tmp_path / "out" / "llm"))
    _, foreign = theirs.load_state_dict(load_file(tmp_path / "out" / "trained.safetensors"), strict=False)
    assert not foreign
    assert close(*outputs_of(model, theirs.eval(), tmp_path / "hf"))


@needs_instructblip
@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_trained_on_transformers_instructblip_is_imported(whole: bool, hf: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config, _, _, theirs = hf("t5", {"qformer": {**QFORMER, **SETTINGS["lora"]}})
    settings = {"r": 3, "lora_alpha": 5, "alpha_pattern": {"attention.attention.query": 2}, "init_lora_weights": False}
    targets = [r"attention.attention.query", r"attention.attention.value", "output_query.dense"]
    torch.manual_seed(3)
    if whole:
        tuned = get_peft_model(theirs, LoraConfig(target_modules=[*targets, "q", "wo"], **settings))
        tuned.save_pretrained(tmp_path / "own")
    else:
        theirs.qformer = get_peft_model(theirs.qformer, LoraConfig(target_modules=targets, **settings))
        theirs.qformer.save_pretrained(tmp_path / "own")
    found = run("import", "--cfg-path", config, "--adapter", tmp_path / "own", "--output", tmp_path / "ours.pth")
    assert list(found["adapters"]) == (["qformer", "llm"] if whole else ["qformer"])
    section = yaml.safe_load((tmp_path / "ours.yaml").read_text())["model"]
    model = registry.get_model_class(section["arch"]).from_config(section).eval()
    assert close(*outputs_of(model, theirs.eval(), tmp_path / "hf"))


@needs_instructblip
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_norms_trained_on_transformers_instructblip_are_imported(family: str, hf: Any, tmp_path: Path) -> None:
    from peft import LNTuningConfig, get_peft_model

    config, _, _, theirs = hf(family, {"qformer": SETTINGS["norms"]})
    targets = ["LayerNorm", "layernorm"]
    targets += ["layer_norm", "final_layer_norm"] if family == "t5" else ["input_layernorm", "norm"]
    tuned = get_peft_model(theirs, LNTuningConfig(target_modules=targets))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "own")
    found = run("import", "--cfg-path", config, "--adapter", tmp_path / "own", "--output", tmp_path / "ours.pth")
    assert found["adapters"]["qformer"]["sublayers"] == [*QFORMER["sublayers"], "embeddings"]
    assert found["adapters"]["llm"]["sublayers"] == (
        ["attention", "ffn", "final"] if family == "t5" else ["attention", "final"]
    )
    section = yaml.safe_load((tmp_path / "ours.yaml").read_text())["model"]
    model = registry.get_model_class(section["arch"]).from_config(section).eval()
    assert close(*outputs_of(model, theirs.eval(), tmp_path / "hf"))


def test_a_folder_that_is_no_adapter_of_this_model_is_refused(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters={"qformer": {**QFORMER, **SETTINGS["lora"]}}))
    run("export", *of(config, checkpoint), "--output", tmp_path / "out")

    def refused(change: Callable[[dict, dict], None]) -> str:
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        own = json.loads((tmp_path / "out" / "qformer" / "adapter_config.json").read_text())
        tensors = load_file(tmp_path / "out" / "qformer" / "adapter_model.safetensors")
        change(own, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(own))
        save_file(tensors, folder / "adapter_model.safetensors")
        arguments = ["import", "--cfg-path", config, "--adapter", folder, "--output", tmp_path / "x.pth"]
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "x.pth").exists()
        return result.output

    assert "peft_type 'PREFIX_TUNING'" in refused(lambda own, _: own.update(peft_type="PREFIX_TUNING"))
    assert "peft_type [" in refused(lambda own, _: own.update(peft_type=["LORA"]))
    assert "modules_to_save" in refused(lambda own, _: own.update(modules_to_save=["lm_head"]))
    assert "no place" in refused(
        lambda _, t: t.update({"base_model.model.vision_model.x.lora_A.weight": torch.ones(1)})
    )
    layer = "base_model.model.encoder.layer.0.output.dense.lora_A.weight"
    assert "missing" in refused(lambda _, tensors: tensors.pop(layer))
    assert "has no layers" in refused(lambda _, t: t.update({layer.replace(".0.", ".9."): t[layer].clone()}))
    assert "of another shape" in refused(lambda own, _: own.update(rank_pattern={}))
    empty = CliRunner().invoke(
        main, ["import", "--cfg-path", str(config), "--adapter", str(tmp_path), "--output", str(tmp_path / "x.pth")]
    )
    assert empty.exit_code == 2 and "no adapter_config.json" in empty.output


def test_an_export_is_uploaded_without_the_run_config(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path, hub: Any
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters={"qformer": {**QFORMER, **SETTINGS["lora"]}}))
    # A process of its own: huggingface_hub reads its environment when it is imported.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
    }
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [
        "export",
        *of(config, checkpoint),
        "--output",
        tmp_path / "out",
        "--push-to-hub",
        "me/adapter",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lavis_peft.cli", *map(str, arguments)],
        env={**kept, **own, **path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.address}/me/adapter"
    names = {"README.md", "trained.safetensors", "qformer/adapter_config.json", "qformer/adapter_model.safetensors"}
    assert hub.files == {name: (tmp_path / "out" / name).read_bytes() for name in names}
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: peft\n") and "`qformer/`" in card
    assert str(tmp_path) not in card


def test_nothing_is_exported_where_it_can_not_be_uploaded(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters={"qformer": {**QFORMER, **SETTINGS["lora"]}}))
    arguments = ["export", *of(config, checkpoint), "--output", tmp_path / "out", "--push-to-hub", "a/b/c"]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 2 and "--push-to-hub a/b/c: Repo id must be" in result.output
    assert not (tmp_path / "out").exists()


@needs_instructblip
def test_the_model_cards_code_runs(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = {"qformer": {**QFORMER, **SETTINGS["bias"]}, "llm": {**LLM, **SETTINGS["rslora"]}}
    config, checkpoint, model, _ = hf("t5", adapters)
    run("export", *of(config, checkpoint), "--output", tmp_path / "out", "--format", "peft-hf")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert '"…"' in code  # there is no telling which of the hub's models these random weights are
    monkeypatch.chdir(tmp_path / "out")
    found: dict[str, Any] = {}
    exec(code.replace('"…"', repr(str(tmp_path / "hf"))), found)
    assert close(*outputs_of(model, found["model"].eval(), tmp_path / "hf"))


def test_a_part_imported_without_what_trained_beside_it_is_noted(
    model_section: Section, tuned_run: TunedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, checkpoint, _ = tuned_run(model_section("t5", adapters={"qformer": {**QFORMER, **SETTINGS["lora"]}}))
    run("export", *of(config, checkpoint), "--output", tmp_path / "out")
    given = ("import", "--cfg-path", config, "--adapter")
    run(*given, tmp_path / "out", "--output", tmp_path / "whole.pth")
    assert "trained.safetensors" not in caplog.text
    run(*given, tmp_path / "out" / "qformer", "--output", tmp_path / "part.pth")
    assert f"{tmp_path / 'out' / 'trained.safetensors'} isn't in it" in caplog.text
