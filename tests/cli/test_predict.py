"""`lavis-peft predict` on small models: the same answers as the model gives itself, pictures from everywhere."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

import lavis_peft

lavis_peft.register()

from lavis_peft.cli import main  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.models.load import load_run  # noqa: E402
from lavis_peft.runners.checkpoints import identity, trained_state  # noqa: E402

PROMPT = "Question: what color is the picture ? Short answer:"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def rows(*arguments: object) -> list[dict[str, Any]]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def tuned(run_file: Any, tmp_path: Path) -> tuple[Path, Path, Any, Any]:
    """A run config, a checkpoint of it, and the model with its image processor."""
    config = run_file()
    whole = yaml.safe_load(config.read_text())
    whole["model"]["adapters"] = {"qformer": {"peft_type": "LORA", "sublayers": ["ffn"], "r": 2, "lora_alpha": 4}}
    # The same base each time: the fixture's is a random one.
    torch.manual_seed(0)
    model, _ = _load(config, whole, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape))
    torch.save({"model": trained_state(model), **identity(model)}, tmp_path / "c.pth")
    loaded, processor = load_run(str(config), str(tmp_path / "c.pth"))
    return config, tmp_path / "c.pth", loaded, processor


def _load(config: Path, whole: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    from lavis.common.registry import registry

    cls = registry.get_model_class(whole["model"]["arch"])
    base = cls.from_config({key: value for key, value in whole["model"].items() if key != "adapters"})
    own = ("visual_encoder.", "t5_model.")
    torch.save({"model": {k: v for k, v in base.state_dict().items() if not k.startswith(own)}}, folder / "base.pth")
    torch.save(base.visual_encoder.state_dict(), folder / "vit.pth")
    whole["model"] |= {"load_pretrained": True, "pretrained": str(folder / "base.pth")}
    whole["model"]["vit_model"]["weights"] = str(folder / "vit.pth")
    config.write_text(yaml.safe_dump(whole))
    return load_run(str(config))


def test_a_prompt_is_asked_of_every_picture_of_a_folder(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, model, processor = tuned
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("b.png", "red"), ("a.jpg", "blue"), ("c.PNG", "green")):
        Image.new("RGB", (40, 30), color).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    found = rows(
        folder, "--prompt", PROMPT, "--choices", "red, blue,green", "--cfg-path", config, "--checkpoint", checkpoint
    )
    assert [Path(row["image"]).name for row in found] == ["a.jpg", "b.png", "c.PNG"]
    images = torch.stack([processor(Image.open(row["image"]).convert("RGB")) for row in found])
    scores = model.score_candidates(images, [PROMPT] * 3, [["red", "blue", "green"]] * 3)
    for row, own in zip(found, scores, strict=True):
        assert row["scores"] == pytest.approx(own.tolist(), abs=1e-5)
        assert row["prediction"] == row["choices"][int(own.argmin())]
        assert row["prompt"] == PROMPT
    one_by_one = rows(
        folder, "--prompt", PROMPT, "--choices", "red,blue,green", "--cfg-path", config, "--checkpoint", checkpoint,
        "--batch-size", 1,
    )  # fmt: skip
    assert [row["prediction"] for row in one_by_one] == [row["prediction"] for row in found]


def test_questions_are_put_into_the_configs_prompt(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, model, processor = tuned
    records = [
        {"image": "test0.png", "question": "what color is it ?", "choices": ["red", "blue"], "question_id": "q7"},
        {"image": "test1.png", "question": "is it red ?", "answer": "no"},
        {"image": "test1.png", "prompt": "the color is"},
    ]
    file = tmp_path / "data" / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    out = tmp_path / "answers.jsonl"
    result = invoke("--questions", file, "--cfg-path", config, "--checkpoint", checkpoint, "--output", out)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [row["prompt"] for row in found]
    assert texts == [
        "Question: what color is it ? Short answer:",
        "Question: is it red ? Short answer:",
        "the color is",
    ]
    assert [row["question_id"] for row in found] == ["q7", "1", "2"]
    assert found[0]["prediction"] in ("red", "blue")
    image = torch.stack([processor(Image.open(tmp_path / "data" / "test1.png").convert("RGB"))] * 2)
    expected = model.predict_answers(
        {"image": image, "text_input": texts[1:]}, num_beams=5, max_len=10
    )  # as its task has it
    assert [row["prediction"] for row in found[1:]] == expected


def test_merged_and_exported_models_answer_as_the_checkpoint_does(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, *_ = tuned
    ask = (
        tmp_path / "data" / "test0.png",
        tmp_path / "data" / "test1.png",
        "--prompt",
        PROMPT,
        "--choices",
        "red,blue",
    )
    expected = [row["scores"] for row in rows(*ask, "--cfg-path", config, "--checkpoint", checkpoint)]
    given = ["--cfg-path", str(config), "--checkpoint", str(checkpoint)]
    assert CliRunner().invoke(main, ["merge", *given, "--output", str(tmp_path / "merged")]).exit_code == 0
    for layout in ("peft", "peft-hf"):
        exported = CliRunner().invoke(main, ["export", *given, "--output", str(tmp_path / layout), "--format", layout])
        assert exported.exit_code == 0, exported.output
    for source in (
        ("--cfg-path", tmp_path / "merged" / "run.yaml"),
        ("--adapter", tmp_path / "peft"),
        ("--adapter", tmp_path / "peft-hf", "--cfg-path", config),
    ):
        found = [row["scores"] for row in rows(*ask, *source)]
        assert found == [pytest.approx(own, abs=1e-4) for own in expected], source


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of one picture."""
    folder = tmp_path / "served"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:60])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pictures_come_from_addresses_and_patterns(tuned: Any, tmp_path: Path, address: str) -> None:
    config, checkpoint, *_ = tuned
    own = ("--prompt", PROMPT, "--choices", "red,blue", "--cfg-path", config, "--checkpoint", checkpoint)
    found = rows(f"{address}/red.png", tmp_path / "served" / "red*", *own)
    assert [row["image"] for row in found] == [f"{address}/red.png", str(tmp_path / "served" / "red.png")]
    assert found[0]["scores"] == pytest.approx(found[1]["scores"], abs=1e-5)


@pytest.mark.parametrize("name", ["broken.png", "gone.png"])
def test_a_bad_picture_is_named_or_skipped(tuned: Any, tmp_path: Path, address: str, name: str) -> None:
    config, checkpoint, *_ = tuned
    named = (f"{address}/{name}", f"{address}/red.png")
    own = ("--prompt", PROMPT, "--choices", "red,blue", "--cfg-path", config, "--checkpoint", checkpoint)
    out = tmp_path / "out.jsonl"
    refused = invoke(*named, *own, "--output", out)
    assert refused.exit_code == 2
    assert f"{address}/{name}" in refused.output
    assert not out.exists()
    result = invoke(*named, *own, "--output", out, "--on-bad-image", "skip")
    assert result.exit_code == 0, result.output
    assert f"skipped: {address}/{name}" in result.output
    first, second = [json.loads(line) for line in out.read_text().splitlines()]
    assert name in first["error"] and "prediction" not in first
    assert second["prediction"] in ("red", "blue")


def test_text_is_the_answer_alone_or_a_line_each(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, *_ = tuned
    one, two = (tmp_path / "data" / f"test{number}.png" for number in (0, 1))
    own = ("--prompt", PROMPT, "--choices", "red,blue", "--cfg-path", config, "--checkpoint", checkpoint)
    assert invoke(one, *own).stdout.strip() in ("red", "blue")
    lines = invoke(one, two, *own).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(one), str(two)]


def test_what_is_wrong_is_said_at_once(tmp_path: Path, tuned: Any) -> None:
    config, *_ = tuned
    result = invoke("--prompt", "x", "--questions", "q", "--choices", "a", "--checkpoint", "c", "--adapter", "d")
    assert result.exit_code == 2
    parts = ("not both", "--choices 'a'", "one or more pictures", "--checkpoint and --adapter", "--adapter d: no such")
    for part in parts:
        assert part in result.output
    result = invoke("x.png", "--prompt", "x", "--images-dir", "y", "--adapter", tmp_path / "data")
    assert result.exit_code == 2
    assert "--images-dir: is for --questions" in result.output and "--cfg-path: missing" in result.output
    result = invoke("gone.png", tmp_path / "*.gif", "--prompt", "x", "--cfg-path", config)
    assert result.exit_code == 2
    assert "gone.png: no such file" in result.output and "*.gif: matches no file" in result.output
    file = tmp_path / "q.jsonl"
    file.write_text('{"image": "gone.png", "question": "a"}\n{"imag": "x.png", "question": 3, "choices": ["a"]}\n')
    result = invoke("--questions", file, "--cfg-path", config)
    assert result.exit_code == 2
    for part in ("line 1: no image file", "'imag' meant", "'question' must be a text", "two or more"):
        assert part in result.output


def test_answers_are_generated_as_the_run_evaluates(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, model, processor = tuned
    picture = tmp_path / "data" / "test0.png"
    image = processor(Image.open(picture).convert("RGB"))[None]
    asked = {"image": image, "text_input": [PROMPT]}
    own = (picture, "--prompt", PROMPT, "--cfg-path", config, "--checkpoint", checkpoint)
    short = {"num_beams": 2, "max_len": 6, "min_len": 5, "length_penalty": 2.0}
    found = rows(*own, "--options", *(f"run.{key}={value}" for key, value in short.items()))
    assert found[0]["prediction"] == model.predict_answers(asked, **short)[0]
    assert found[0]["prediction"] != rows(*own)[0]["prediction"]
    caption = model.generate({"image": image, "prompt": [PROMPT]}, num_beams=5, max_length=7, min_length=1)[0]
    captioned = rows(*own, "--max-len", 7, "--options", "run.task=captioning_peft")
    assert captioned[0]["prediction"] == caption.strip()
    refused = invoke(*own, "--max-len", 3, "--options", "run.min_len=5")
    assert refused.exit_code == 2 and "run.min_len: 5 is more than run.max_len, 3" in refused.output


def test_a_picture_that_is_left_alone_after_skipping_is_named(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, *_ = tuned
    own = ("--prompt", PROMPT, "--choices", "red,blue", "--cfg-path", config, "--checkpoint", checkpoint)
    good = tmp_path / "data" / "test0.png"
    found = invoke(good, config, *own, "--on-bad-image", "skip").stdout.splitlines()
    assert [line.split("\t")[0] for line in found] == [str(good)]
    assert invoke(config, *own, "--on-bad-image", "skip").stdout == ""


def test_a_device_that_is_none_and_an_output_that_is_there_are_refused(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, *_ = tuned
    own = (tmp_path / "data" / "test0.png", "--prompt", PROMPT, "--cfg-path", config, "--checkpoint", checkpoint)
    result = invoke(*own, "--device", "gpu0")
    assert result.exit_code == 2 and "--device gpu0: give auto, cpu, cuda or cuda:N" in result.output
    kept = tmp_path / "answers.jsonl"
    kept.write_text("precious")
    result = invoke(*own, "--output", kept)
    assert result.exit_code == 2 and "exists already" in result.output
    assert kept.read_text() == "precious"


def test_weights_that_are_no_numbers_give_no_text(tuned: Any, tmp_path: Path) -> None:
    config, checkpoint, *_ = tuned
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["query_tokens"].fill_(float("nan"))
    torch.save(content, tmp_path / "diverged.pth")
    picture = tmp_path / "data" / "test0.png"
    own = ("--prompt", PROMPT, "--cfg-path", config, "--checkpoint", tmp_path / "diverged.pth")
    result = invoke(picture, *own)
    assert result.exit_code == 2 and "query_tokens isn't all numbers" in result.output
