import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import lavis_peft
from lavis_peft.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def builders():
    lavis_peft.register()
    from lavis_peft.datasets import BUILDERS

    return BUILDERS


@pytest.fixture
def build(builders):
    """Builds a dataset from changes to its default YAML, with 8×8 pictures."""

    def make(name, **changes):
        small = {"name": "peft_image", "image_size": 8}
        section = OmegaConf.load(builders[name].default_config_path()).datasets[name]
        section.vis_processor = {"train": small, "eval": small}
        return builders[name](OmegaConf.merge(section, changes)).build_datasets()

    return make


def records(*changes):
    names = ("a.png", "b.png", "c.png")
    base = {"question": "which?", "answer": "x", "choices": ["x", "y"]}
    return [{"image": names[i % 3], **base, "question_id": f"q{i}", **change} for i, change in enumerate(changes)]


def info(images, **splits):
    return {"annotations": {split: {"storage": str(path)} for split, path in splits.items()}, "images": images}


def test_names_are_registered_with_their_defaults(builders):
    from lavis.common.registry import registry

    from lavis_peft.runners.config import dataset_sections

    for name, cls in builders.items():
        assert registry.get_builder_class(name) is cls
        sections = dataset_sections(OmegaConf.create({"datasets": {name: {"seed": 3}}}))
        assert sections[name].seed == 3 and sections[name].prompt


def test_json_and_jsonl_splits(build, write, pictures):
    train = write("train.jsonl", "\n".join(json.dumps(r) for r in records({}, {}, {"answer": ["x", "y"]})))
    test = write("test.json", records({"choices": ["x", "y", "z"]}))
    splits = build("instruct_json", build_info=info({"storage": str(pictures)}, train=train, test=test))
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 3, "test": 1}
    sample = splits["test"][0]
    assert sample["text_input"] == "Question: which? Short answer:" and sample["candidates"] == ["x", "y", "z"]
    assert sample["image"].shape == (3, 8, 8) and sample["image"].dtype == torch.float32


def test_relative_paths_count_from_the_working_directory(build, write, pictures, tmp_path, monkeypatch):
    write("train.json", records({}))
    monkeypatch.chdir(tmp_path)
    splits = build("instruct_json", build_info=info({"storage": "pictures"}, train="train.json"))
    assert splits["train"][0]["image_id"] == "a.png"


def test_images_count_from_the_annotation_file_by_default(build, write, pictures):
    path = write("train.json", records({"image": "pictures/a.png"}, {"image": str(pictures / "b.png")}))
    assert len(build("instruct_json", build_info=info({}, train=path))["train"]) == 2


def test_nothing_is_downloaded_and_no_url_is_needed(build, write, pictures, monkeypatch):
    import lavis.datasets.builders.base_dataset_builder as base

    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(base, "download_url", refuse)
    path = write("train.json", records({}))
    section = info({"storage": str(pictures)}, train=path)
    section["annotations"]["train"]["url"] = "https://example.org/train.json"
    assert len(build("instruct_json", build_info=section)["train"]) == 1


def test_options_reach_the_data(build, write, pictures):
    path = write("train.json", records(*[{} for _ in range(30)]))
    section = info({"storage": str(pictures)}, train=path, test=path)
    plain = build("instruct_json", build_info=section)
    few = build("instruct_json", build_info=section, max_samples={"train": 4})
    assert len(few["train"]) == 4 and len(few["test"]) == 30
    shuffled = build("instruct_json", build_info=section, shuffle_images=True, cache_images=True)
    for index in range(30):
        assert plain["test"][index]["question_id"] == shuffled["test"][index]["question_id"]
        assert not torch.equal(plain["test"][index]["image"], shuffled["test"][index]["image"])


def test_fixed_choices_and_lettered_options(build, write, pictures):
    path = write("train.json", [{"image": "a.png", "question": "ok?", "answer": "no"}])
    splits = build(
        "instruct_json",
        build_info=info({"storage": str(pictures)}, train=path),
        choices=["yes", "no"],
        prompt="{{{question}}} Options: {options}",
        target="({letter}) {answer}",
    )
    sample = splits["train"][0]
    assert sample["text_input"] == "{ok?} Options: (a) yes (b) no" and sample["text_output"] == "(b) no"
    assert sample["candidates"] == ["(a) yes", "(b) no"]


def test_problems_of_all_splits_come_together(build, write, pictures):
    train = write("train.json", records({"answer": "z"}, {"question_id": "same"}, {"question_id": "same"}))
    val = write("val.json", "[{]")
    test = pictures / "nothing.json"
    with pytest.raises(DataError) as error:
        build("instruct_json", build_info=info({"storage": str(pictures)}, train=train, val=val, test=test))
    text = str(error.value)
    assert f"{train}: record 1: answer 'z' isn't among the choices" in text
    assert f"{train}: record 3 (question_id 'same'): the same question_id as {train}: record 2" in text
    assert f"{val}: not JSON: line 1" in text
    assert f"datasets.instruct_json.build_info.annotations.test.storage: no file '{test}'" in text


def test_missing_pictures_are_found_before_training(build, write, pictures):
    path = write("train.json", records({}, {"image": "gone.png"}))
    with pytest.raises(DataError) as error:
        build("instruct_json", build_info=info({"storage": str(pictures)}, train=path))
    assert f"{pictures / 'gone.png'}, named by {path}: record 2 (question_id 'q1')" in str(error.value)


def test_config_mistakes_come_before_the_files(build):
    with pytest.raises(ConfigError) as error:
        build("instruct_json", build_info=info({}, train="nowhere.json"), prompt="{qestion}", sead=3)
    assert "prompt: unknown field" in str(error.value) and "sead: unknown key" in str(error.value)


@pytest.mark.parametrize(
    ("key", "section", "message"),
    [
        ("vis_processor", {"train": {"name": "blip_imag"}}, "vis_processor.train.name: no processor 'blip_imag'"),
        ("vis_processor", {"test": {"name": "peft_image"}}, "vis_processor.test: unknown key"),
        (
            "vis_processor",
            {"eval": {"name": "blip_image_eval", "image_szie": 64}},
            "vis_processor.eval.image_szie: unknown key (did you mean 'image_size'?)",
        ),
        ("text_processor", {"train": {"max_words": 0}}, "text_processor.train: instruct_blip_question.max_words"),
        ("text_processor", {"eval": {"max_wrods": 3}}, "unknown key (did you mean 'max_words'?)"),
    ],
)
def test_processor_mistakes(build, write, pictures, key, section, message):
    path = write("train.json", records({}))
    with pytest.raises(ConfigError) as error:
        build("instruct_json", build_info=info({"storage": str(pictures)}, train=path), **{key: section})
    assert message in str(error.value)


def test_a_missing_interpolation_is_a_config_error(build):
    with pytest.raises(ConfigError, match=r"datasets\.instruct_json"):
        build("instruct_json", build_info=info({"storage": "${oc.env:NOT_SET_ANYWHERE}"}, train="x.json"))


def test_the_default_yaml_alone_says_what_is_missing(builders):
    with pytest.raises(ConfigError, match="build_info.annotations: missing"):
        builders["instruct_json"]()


def test_lavis_joins_training_sets(build, write, pictures):
    from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split

    path = write("train.json", records({}, {}))
    section = info({"storage": str(pictures)}, train=path)
    parts = {name: build("instruct_json", build_info=section) for name in ("one", "two")}
    joined = concat_datasets(reorg_datasets_by_split(parts))["train"]
    batch = joined.collater([joined[0], joined[3]])
    assert batch["image"].shape == (2, 3, 8, 8) and batch["question_id"] == ["q0", "q1"]


@pytest.fixture
def tiny_easy_vqa(tmp_path):
    answers = "circle green red gray yes teal black rectangle yellow triangle brown blue no"
    (tmp_path / "answers.txt").write_text(answers.replace(" ", "\n"))
    for split, n_images in (("train", 4), ("test", 2)):
        images = tmp_path / split / "images"
        images.mkdir(parents=True)
        rows = []
        for number in range(n_images):
            Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(images / f"{number}.png")
            rows += [["what color is the shape?", "red", number], ["is there a circle?", "no", number]]
        (images.parent / "questions.json").write_text(json.dumps(rows))
    return tmp_path


def test_easy_vqa_and_its_validation_split(build, tiny_easy_vqa):
    plain = build("easy_vqa", data_dir=str(tiny_easy_vqa))
    assert {split: len(dataset) for split, dataset in plain.items()} == {"train": 8, "test": 4}
    carved = build("easy_vqa", data_dir=str(tiny_easy_vqa), val_images=1, max_samples={"test": 3})
    assert {split: len(dataset) for split, dataset in carved.items()} == {"train": 6, "val": 2, "test": 3}
    sample = carved["val"][1]
    assert sample["choices"] == ["yes", "no"] and sample["question_type"] == "yes_no/plain"
    with pytest.raises(ConfigError, match=r"datasets\.easy_vqa\.val_images: 9 asked for"):
        build("easy_vqa", data_dir=str(tiny_easy_vqa), val_images=9)


def test_easy_vqa_comes_with_its_package(builders):
    splits = builders["easy_vqa"]().build_datasets()
    assert (len(splits["train"]), len(splits["test"])) == (38575, 9673)
    sample = splits["test"][0]
    assert sample["text_input"] == "Question: what is the red shape? Short answer:"
    assert sample["text_output"] == "triangle" and sample["candidates"] == ["circle", "rectangle", "triangle"]
