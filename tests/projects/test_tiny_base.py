"""The tiny base's training: pictures, instructions, tokenizers, and a few steps of each stage."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import transformers

from lavis_peft.errors import ConfigError
from lavis_peft.paths import projects_dir

FOLDER = projects_dir() / "tiny_base"
SMALL = """
seed: 3
width: 32
feed_forward: 64
qformer_layers: 2
llm_layers: 1
pictures: 64
vision: {steps: 3, batch: 4, lr: 2.0e-3, warmup: 2}
t5: {steps: 3, batch: 4, lr: 2.0e-3, warmup: 2}
llama: {steps: 3, batch: 4, lr: 2.0e-3, warmup: 2}
"""


@pytest.fixture(autouse=True)
def folder_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import one another as a script's folder lets them."""
    monkeypatch.syspath_prepend(str(FOLDER))


def script(name: str) -> ModuleType:
    """One of the folder's modules."""
    return importlib.import_module(name)


def test_same_seed_draws_the_same_pictures() -> None:
    draw = script("pictures").draw_pictures
    first, again, other = (draw(np.random.default_rng(seed), 8) for seed in (5, 5, 6))
    assert first.pixels.shape == (8, 64, 64, 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


def test_patch_labels_name_what_is_drawn() -> None:
    pictures_module = script("pictures")
    pictures = pictures_module.draw_pictures(np.random.default_rng(0), 64)
    background = len(pictures_module.SHAPES)
    for index in range(len(pictures)):
        labels = pictures.patch_shape[index]
        drawn = set(pictures.shape[index, : pictures.count[index]])
        assert set(labels[labels != background]) <= drawn
        assert (labels != background).any()


def test_objects_have_their_colour() -> None:
    module = script("pictures")
    pictures = module.draw_pictures(np.random.default_rng(1), 512)
    seen = 0
    for index in range(len(pictures)):
        top = pictures.count[index] - 1  # nothing is drawn over the last object
        color, shape = pictures.color[index, top], pictures.shape[index, top]
        # Only these two are sure to be filled at their centre.
        if module.SHAPES[shape] in ("circle", "rectangle") and module.COLOR_NAMES[color] in ("red", "blue"):
            x, y = np.clip(pictures.center[index, top].astype(int), 0, module.SIDE - 1)
            strongest = pictures.pixels[index, y, x].argmax()
            assert strongest == (0 if module.COLOR_NAMES[color] == "red" else 2)
            seen += 1
    assert seen > 5


def test_answers_are_true() -> None:
    instructions = script("instructions")
    scene = [
        instructions.Thing("red", "circle", "top left", 0.4),
        instructions.Thing("blue", "star", "middle center", 1.5),
    ]
    rng = np.random.default_rng(0)
    asked = dict(instructions.write_instruction(rng, scene) for _ in range(4000))
    assert asked["name the color of the circle."] == "red"
    assert asked["question: can you see a star? short answer:"] == "yes"
    assert asked["is the picture free of any star?"] == "no"
    assert asked["which shape is not red?"] == "star"
    assert asked["how many objects are there?"] == "two"
    assert asked["where is the star?"] == "middle center"
    assert asked["describe the picture."] == "a red circle and a blue star"
    assert not [text for text in asked if " a orange" in text or " a oval" in text]


def test_no_instruction_is_a_question_of_easy_vqa() -> None:
    instructions = script("instructions")
    easy_vqa = re.compile(
        r"is (there (not )?a|no|a) (\w+ )?\w+( shape)?( present| in the image)?\?"
        r"|does the image (not )?contain .*|what (color|shape|is the) .*"
    )
    scene = [instructions.Thing("red", "circle", "top left", 0.4)]
    rng = np.random.default_rng(0)
    for _ in range(4000):
        text, _ = instructions.write_instruction(rng, scene)
        assert not easy_vqa.fullmatch(text.removeprefix("question: ").split("? ")[0])


def test_every_word_of_an_instruction_is_a_token() -> None:
    instructions, vocabulary, pictures_module = script("instructions"), script("vocabulary"), script("pictures")
    known = set(vocabulary.words())
    rng = np.random.default_rng(0)
    pictures = pictures_module.draw_pictures(rng, 400)
    for index in range(len(pictures)):
        text, answer = instructions.write_instruction(rng, instructions.things_of(pictures, index))
        for sign in "?:.":
            text = text.replace(sign, f" {sign} ")
        assert set(f"{text} {answer}".split()) <= known


def test_tokenizers_load_and_frame_texts(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    vocabulary = script("vocabulary")
    vocabulary.write_bert(tmp_path / "bert")
    vocabulary.write_t5(tmp_path / "t5")
    vocabulary.write_llama(tmp_path / "llama")
    bert = BertTokenizer.from_pretrained(tmp_path / "bert", truncation_side="left")
    tokens = bert.convert_ids_to_tokens(bert("Is there a zebra?").input_ids)
    assert tokens[0] == "[CLS]" and tokens[-2:] == ["?", "[SEP]"]
    assert "[UNK]" not in tokens
    t5 = AutoTokenizer.from_pretrained(tmp_path / "t5")
    assert t5("red circle").input_ids[-1] == t5.eos_token_id == 1 and t5.pad_token_id == 0
    assert t5.decode(t5("red circle").input_ids, skip_special_tokens=True) == "red circle"
    llama = AutoTokenizer.from_pretrained(tmp_path / "llama")
    ids = llama("red circle</s>").input_ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 4)


def test_settings_report_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("widht: 3\nseed: 0\nvision: {steps: 0, btach: 2}\n")
    with pytest.raises(ConfigError) as caught:
        script("settings").Settings.read(path)
    text = str(caught.value)
    assert "settings.widht" in text and "settings.vision.btach" in text and "settings.vision.steps" in text


def test_shipped_config_is_read() -> None:
    assert script("settings").Settings.read(FOLDER / "config.yaml").width == 96


def test_a_few_steps_of_every_stage_make_a_loadable_base(tmp_path: Path) -> None:
    families = ["llama", "t5"] if hasattr(transformers, "LlamaForCausalLM") else ["t5"]
    output = tmp_path / "base"
    _train(tmp_path, has_llama="llama" in families)
    stages = [json.loads(line)["stage"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert set(stages) == {"vision", *families}
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.safetensors"))
    each = [f"{family}{end}" for family in families for end in ("/model.safetensors", "_qformer.safetensors")]
    assert files == sorted([*each, "vit.safetensors"])
    # Done stages are skipped: nothing is written a second time.
    before = {name: (output / name).stat().st_mtime_ns for name in files}
    _train(tmp_path, has_llama="llama" in families)
    assert before == {name: (output / name).stat().st_mtime_ns for name in files}
    _check_t5_loads(output)


def _train(folder: Path, *, has_llama: bool) -> None:
    (folder / "small.yaml").write_text(SMALL)
    command = ["--output", str(folder / "base"), "--config", str(folder / "small.yaml")]
    if has_llama:
        assert script("train").main(command) == 0
        return
    # An old transformers has no LLaMA: the last stage says so, and the stages before it have left their files.
    with pytest.raises(SystemExit) as caught:
        script("train").main(command)
    assert caught.value.code == 2


def _check_t5_loads(output: Path) -> None:
    from lavis_peft.models.t5 import Blip2T5InstructPeft

    settings = script("settings").Settings.read(output.parent / "small.yaml")
    section = script("instruct").model_section(settings, output, "t5")
    section |= {"t5_model": str(output / "t5"), "pretrained": str(output / "t5_qformer.safetensors")}
    section.pop("llm_tokenizer")
    assert Blip2T5InstructPeft.from_config(section) is not None


def test_wrong_settings_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("widht: 3\n")
    with pytest.raises(SystemExit) as caught:
        script("train").main(["--output", str(tmp_path / "base"), "--config", str(config)])
    assert caught.value.code == 2
    assert "widht" in capsys.readouterr().err
