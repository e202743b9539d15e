"""The README's way from a JSON file to an answer, on the tiny model: train, merge, load, answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import lavis_peft
from lavis_peft.paths import projects_dir

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three splits of pictures with one square each, as projects/instruct_json/README.md has them."""
    (tmp_path / "images").mkdir()
    for split, count in (("train", 32), ("val", 8), ("test", 8)):
        records = []
        for number in range(count):
            color = list(COLORS)[number % 2]
            name = f"{split}{number}.png"
            picture = Image.new("RGB", (64, 64), (240, 240, 240))
            ImageDraw.Draw(picture).rectangle((10 + number % 7, 12, 40, 44), fill=COLORS[color])
            picture.save(tmp_path / "images" / name)
            records.append(
                {"image": name, "question": "what color is the shape?", "choices": list(COLORS), "answer": color}
            )
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    return tmp_path


def _command(folder: Path, *arguments: object) -> str:
    command = [sys.executable, "-m", "lavis_peft.cli", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_from_a_json_file_to_an_answer(folder: Path) -> None:
    config = projects_dir() / "instruct_json" / "tiny.yaml"
    _command(folder, "train", "--cfg-path", config, "--options", "run.device=cpu")
    (run,) = (folder / "output" / "instruct_json").iterdir()
    assert json.loads((run / "result" / "metrics_test.json").read_text())["total"] == 8
    checkpoint = run / "checkpoint_best.pth"
    _command(folder, "merge", "--cfg-path", config, "--checkpoint", checkpoint, "--output", "merged")

    tuned, image_processor = lavis_peft.load_run(str(config), str(checkpoint))
    merged, _ = lavis_peft.load_run(str(folder / "merged" / "run.yaml"))
    image = image_processor(Image.open(folder / "images" / "test0.png").convert("RGB")).unsqueeze(0)
    sample = {"image": image, "prompt": "Question: what color is the shape? Options: (a) red (b) blue Short answer:"}
    ranks = [model.predict_class(dict(sample), ["red", "blue"]).tolist() for model in (tuned, merged)]
    assert ranks[0] == ranks[1]
    answers = [model.generate(dict(sample), num_beams=1, max_length=6) for model in (tuned, merged)]
    assert answers[0] == answers[1]
    assert isinstance(answers[0][0], str)


def test_lavis_loads_a_model_and_its_processors() -> None:
    lavis_peft.register()
    from lavis.models import load_model_and_preprocess

    model, vis_processors, text_processors = load_model_and_preprocess("blip2_t5_instruct_peft", "tiny", is_eval=True)
    assert not model.training
    image = vis_processors["eval"](Image.new("RGB", (64, 64), "red")).unsqueeze(0)
    answer = model.generate({"image": image, "prompt": text_processors["eval"]("what color is the shape?")})
    assert len(answer) == 1
