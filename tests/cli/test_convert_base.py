"""`lavis-peft convert-base`: to Hugging Face's layout and back, exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402  after the plugin mended what is broken on this stack
from lavis.common.registry import registry  # noqa: E402

from lavis_peft.cli import main  # noqa: E402
from lavis_peft.models.merged import compare  # noqa: E402

Section = Callable[..., dict[str, Any]]
TunedRun = Callable[..., tuple[Path, Path, Any]]
needs_instructblip = pytest.mark.skipif(
    not hasattr(transformers, "InstructBlipForConditionalGeneration"),
    reason=f"transformers {transformers.__version__} has no InstructBLIP",
)
# What a fragment leaves to the model's own defaults, which are the published models'.
PRECISE = {"llm_precision": "fp32", "vit_precision": "fp32"}


def convert(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["convert-base", *map(str, arguments)])


def build(path: Path) -> Any:
    section = {**OmegaConf.to_container(OmegaConf.load(path).model), **PRECISE}
    return registry.get_model_class(section["arch"]).from_config(OmegaConf.create(section)).eval()


@needs_instructblip
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_ours_to_theirs_to_ours(family: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> None:
    config, _, _ = tuned_run(model_section(family), strong=True)
    ours = build(config)
    done = convert(config, "--to", "hf", "--output", tmp_path / "hf", "--json")
    assert done.exit_code == 0, done.output
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "qformer_tokenizer"} <= set(
        json.loads(done.stdout)["files"]
    )
    done = convert(tmp_path / "hf", "--output", tmp_path / "lavis")
    assert done.exit_code == 0, done.output
    names = ["llm", "model.yaml", "qformer.safetensors", "qformer_tokenizer", "vit.safetensors"]
    assert sorted(path.name for path in (tmp_path / "lavis").iterdir()) == names
    again = build(tmp_path / "lavis" / "model.yaml")
    expected, found = ours.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert compare(ours, again) == (0.0, 0.0)
    # And on: what was made of theirs makes theirs again, file for file.
    done = convert(tmp_path / "lavis" / "model.yaml", "--to", "hf", "--output", tmp_path / "again", "--json")
    assert done.exit_code == 0, done.output
    for name in ("model.safetensors", "preprocessor_config.json", "generation_config.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name


@needs_instructblip
@pytest.mark.parametrize("sharded", [False, True])
def test_what_transformers_saves_is_read(
    sharded: bool, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, _, _ = tuned_run(model_section("t5"), strong=True)
    assert convert(config, "--to", "hf", "--output", tmp_path / "hf").exit_code == 0
    from transformers import InstructBlipForConditionalGeneration

    size = {"max_shard_size": "40KB"} if sharded else {}
    saved = tmp_path / "saved"
    model = InstructBlipForConditionalGeneration.from_pretrained(str(tmp_path / "hf"))
    model.save_pretrained(saved, **size)
    if not (saved / "model.safetensors").exists() and not sharded:
        assert (saved / "pytorch_model.bin").exists()  # as older versions save
    for path in (tmp_path / "hf").iterdir():
        if "token" in path.name:
            (saved / path.name).symlink_to(path)
    done = convert(saved, "--output", tmp_path / "lavis")
    assert done.exit_code == 0, done.output
    expected, found = build(config).state_dict(), build(tmp_path / "lavis" / "model.yaml").state_dict()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


@needs_instructblip
def test_dtype(model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> None:
    config, _, _ = tuned_run(model_section("t5"))
    assert convert(config, "--to", "hf", "--dtype", "bf16", "--output", tmp_path / "hf").exit_code == 0
    from safetensors.torch import load_file

    assert {value.dtype for value in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@needs_instructblip
def test_what_no_model_could_load_is_refused(model_section: Section, tuned_run: TunedRun, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config, _, _ = tuned_run(model_section("t5"))
    source = tmp_path / "hf"
    assert convert(config, "--to", "hf", "--output", source).exit_code == 0
    whole, sizes = load_file(source / "model.safetensors"), (source / "config.json").read_text()
    lost = {
        "language_projection.bias": "t5_proj.bias",
        "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
        "language_model.encoder.block.1.layer.1.DenseReluDense.wo.weight": "t5_model.encoder.block.1.layer.1",
    }
    for name, named in lost.items():
        some = {key: value for key, value in whole.items() if key != name}
        save_file(some, source / "model.safetensors", metadata={"format": "pt"})
        done = convert(source, "--output", tmp_path / "out")
        assert done.exit_code == 2 and "1 missing" in done.output and named in done.output, done.output
    save_file(whole, source / "model.safetensors", metadata={"format": "pt"})
    for before, after, named in (
        ('"num_hidden_layers": 4', '"num_hidden_layers": 3', "Qformer.bert.encoder.layer.3."),
        ('"d_ff": 48', '"d_ff": 40', "t5_model.encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    ):
        assert before in sizes
        (source / "config.json").write_text(sizes.replace(before, after))
        done = convert(source, "--output", tmp_path / "out")
        assert done.exit_code == 2 and named in done.output, done.output
    assert not list(tmp_path.glob("*out*"))


def _directory(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json there; give a Hugging Face InstructBLIP directory"),
        ({"model_type": "blip-2"}, "model_type: 'blip-2'; an instructblip is needed"),
        ({"model_type": "instructblip", "text_config": {"model_type": "opt"}}, "text_config.model_type: 'opt'"),
        ({"model_type": "instructblip", "text_config": {"model_type": "t5"}}, "no weights in this folder"),
    ],
)
def test_a_directory_of_something_else_is_refused(content: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if content is not None:
        _directory(source, **content)
    done = convert(source, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = _directory(tmp_path / "source", model_type="instructblip", text_config={"model_type": "t5"})
    names = ("query_tokens", "itm_head.weight", "language_model.shared.weight")
    save_file({name: torch.ones(2, 2) for name in names}, source / "model.safetensors")
    done = convert(source, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "1 weights have no place in LAVIS's InstructBLIP: itm_head.weight" in done.output


def test_a_file_without_a_model_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("run: {}\n")
    done = convert(tmp_path / "x.yaml", "--to", "hf", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "no `model` section" in done.output


def test_a_name_that_is_nowhere_says_so(tmp_path: Path) -> None:
    done = convert("Salesforce/instructblip-flan-t5-xl", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert (
        "SOURCE: 'Salesforce/instructblip-flan-t5-xl' is no folder here, and can't be had from the hub" in done.output
    )
    done = convert("./Salesforce/x", "--output", tmp_path / "out")
    assert "no config.json there" in done.output


def test_dtype_is_for_hf_alone(tmp_path: Path) -> None:
    done = convert(tmp_path, "--dtype", "bf16", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "--dtype: is for --to hf" in done.output


@needs_instructblip
def test_random_parts_are_not_converted(model_section: Section, tmp_path: Path) -> None:
    section = {**model_section("t5"), "model_type": "flant5xl"}
    (tmp_path / "x.yaml").write_text(OmegaConf.to_yaml({"model": section}))
    done = convert(tmp_path / "x.yaml", "--to", "hf", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "model.vit_model: names no weights" in done.output
