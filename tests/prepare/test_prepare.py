"""From official layouts, whole and damaged, to records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_peft.errors import ConfigError, DataError, DiskFull
from lavis_peft.prepare import BENCHMARKS, SPLITS, prepare

Download = Callable[..., Path]


def run(name: str, source: Path, **options: Any) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The summary, and the records that were written."""
    output = source.parent / "prepared"
    result = prepare(BENCHMARKS[name], source, output, **options)
    return result, {split: json.loads((output / f"{split}.json").read_text()) for split in SPLITS}


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_whole_download(name: str, official_download: Download) -> None:
    source = official_download(name)
    result, records = run(name, source)
    assert {split: len(found) for split, found in records.items()} == {"train": 6, "val": 3, "test": 3}
    assert {split: of["found"] for split, of in result["counts"].items()} == {"train": 6, "val": 3, "test": 3}
    assert (result["images"]["missing"], result["images"]["damaged"], result["dropped"]) == (0, 0, [])
    # Every split differs from the published size, and each difference is said.
    published = BENCHMARKS[name].published
    for split in SPLITS:
        (line,) = [line for line in result["warnings"] if line.startswith(f"{split}:")]
        assert f"published are {published[split]:,}" in line
    for split in SPLITS:
        assert all((source / record["image"]).is_file() for record in records[split])
    section = yaml.safe_load((source.parent / "prepared" / "dataset.yaml").read_text())["datasets"][f"{name}_peft"]
    build_info = section["build_info"]
    assert build_info["images"]["storage"] == str(source)
    assert build_info["annotations"]["val"]["storage"] == str(source.parent / "prepared" / "val.json")


def test_published_sizes() -> None:
    assert {name: tuple(found.published.values()) for name, found in BENCHMARKS.items()} == {
        "scienceqa": (6218, 2097, 2017),
        "iconqa": (18946, 6316, 6316),
        "vizwiz": (20523, 4319, 4319),
        "flickr30k": (29000, 1014, 1000),
    }


def test_scienceqa_records(official_download: Download) -> None:
    _, records = run("scienceqa", official_download("scienceqa"))
    assert records["train"][1] == {
        "image": "images/train/2/image.png",
        "question": "What color is the picture?",
        "context": "Look at the picture. A lecture; on *colors*.",
        "choices": ["red", "blue", "green"],
        "answer": "blue",
        "question_id": "2",
        "groups": {"subject": "language science", "modality": ["text", "image"], "grade": "1-6"},
    }
    assert records["train"][2]["groups"] == {"subject": "social science", "modality": ["image"], "grade": "7-12"}


@pytest.mark.parametrize(("grade", "group"), [("grade1", "1-6"), ("grade6", "1-6"), ("grade7", "7-12")])
def test_scienceqa_grades_are_in_two_groups(grade: str, group: str, official_download: Download) -> None:
    source = official_download("scienceqa")
    _problem(grade=grade)(source)
    _, records = run("scienceqa", source)
    assert records["train"][0]["groups"]["grade"] == group


def test_scienceqa_with_its_image_folders_at_the_top(official_download: Download) -> None:
    source = official_download("scienceqa")
    for split in SPLITS:
        (source / "images" / split).rename(source / split)
    _, records = run("scienceqa", source)
    assert records["val"][0]["image"] == "val/8/image.png"


def test_iconqa_records(official_download: Download) -> None:
    source = official_download("iconqa")
    _, records = run("iconqa", source)
    assert records["train"][1] == {
        "image": "iconqa_data/iconqa/train/choose_txt/2/image.png",
        "question": "What color is it?",
        "choices": ["red", "blue", "green"],
        "answer": "blue",
        "question_id": "2",
        "groups": {"skill": ["counting", "scene"], "grade": "grade1"},
    }
    # From the folder inside, and without the lists.
    (source / "iconqa_data" / "pid2skills.json").unlink()
    _, inside = run("iconqa", source / "iconqa_data" / "iconqa")
    assert inside["train"][1]["image"] == "train/choose_txt/2/image.png"


def test_iconqa_without_lists_has_the_grade_only(official_download: Download) -> None:
    source = official_download("iconqa")
    (source / "iconqa_data" / "pid2skills.json").unlink()
    _, records = run("iconqa", source)
    assert records["test"][0]["groups"] == {"grade": "grade1"}


def test_vizwiz_records_keep_all_ten_answers(official_download: Download) -> None:
    result, records = run("vizwiz", official_download("vizwiz"))
    assert records["val"][1] == {
        "image": "val/VizWiz_val_00000001.jpg",
        "question": "What color is this?",
        "answer": ["blue"] * 7 + ["unanswerable"] * 3,
        "question_id": "VizWiz_val_00000001.jpg",
        "groups": {"answer_type": "other"},
    }
    assert records["test"] == records["val"]
    assert any("official test answers aren't public" in line for line in result["warnings"])


def test_vizwiz_needs_nothing_of_the_test_split(official_download: Download) -> None:
    source = official_download("vizwiz")
    (source / "Annotations" / "test.json").unlink()
    shutil.rmtree(source / "test")
    _, records = run("vizwiz", source)
    assert len(records["test"]) == 3


def test_flickr30k_cleans_training_captions_only(official_download: Download) -> None:
    _, records = run("flickr30k", official_download("flickr30k"))
    assert records["train"][0] == {
        "image": "flickr30k-images/1000092795.jpg",
        "answer": [f"A red picture number {index}" for index in range(5)],
        "question_id": "1000092795",
    }
    assert records["test"][0]["answer"][0] == "A red picture; number 0 !"


@pytest.mark.parametrize(
    ("name", "origin", "looked_for"),
    [
        ("scienceqa", "lupantech/ScienceQA", ["problems.json", "pid_splits.json", "images/val or val"]),
        ("iconqa", "iconqa_data.zip", ["train/choose_txt", "iconqa_data/iconqa/test/choose_txt"]),
        ("vizwiz", "Annotations.zip", ["Annotations/train.json", "Annotations/val.json", "folder train"]),
        ("flickr30k", "caption_datasets.zip", ["karpathy/dataset_flickr30k.json", "flickr30k-images"]),
    ],
)
def test_everything_that_is_missing_is_named_at_once(
    name: str, origin: str, looked_for: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        run(name, tmp_path)
    assert all(wanted in str(caught.value) for wanted in [origin, *looked_for])
    assert not (tmp_path.parent / "prepared").exists()
    with pytest.raises(DataError, match="no such folder"):
        run(name, tmp_path / "nowhere")


def test_missing_and_truncated_images(official_download: Download) -> None:
    source = official_download("scienceqa")
    (source / "images" / "train" / "1" / "image.png").unlink()
    damaged = source / "images" / "val" / "8" / "image.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        run("scienceqa", source)
    message = str(caught.value)
    assert "2 of 12 images can't be used" in message
    assert "images/train/1/image.png: missing" in message
    assert "images/val/8/image.png: can't be read" in message
    assert not (source.parent / "prepared").exists()

    result, records = run("scienceqa", source, drop_broken=True)
    assert (result["images"]["missing"], result["images"]["damaged"]) == (1, 1)
    assert {split: of["dropped"] for split, of in result["counts"].items()} == {"train": 1, "val": 1, "test": 0}
    assert [record["question_id"] for record in records["val"]] == ["9", "10"]


def test_without_decoding_only_missing_images_are_found(official_download: Download) -> None:
    source = official_download("flickr30k")
    damaged = source / "flickr30k-images" / "1000092795.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    result, _ = run("flickr30k", source, decode=False)
    assert result["images"] == {"checked": 12, "decoded": False, "missing": 0, "damaged": 0}
    (source / "flickr30k-images" / "1000092796.jpg").unlink()
    with pytest.raises(DataError, match="1 of 12 images"):
        run("flickr30k", source, decode=False)


def _problem(**changes: Any) -> Callable[[Path], None]:
    return lambda root: change(root / "problems.json", lambda problems: problems["1"].update(changes))


def _data(**changes: Any) -> Callable[[Path], None]:
    path = "iconqa_data/iconqa/train/choose_txt/1/data.json"
    return lambda root: change(root / path, lambda data: data.update(changes))


def _entry(**changes: Any) -> Callable[[Path], None]:
    return lambda root: change(root / "Annotations" / "train.json", lambda entries: entries[0].update(changes))


def _image(**changes: Any) -> Callable[[Path], None]:
    path = "karpathy/dataset_flickr30k.json"
    return lambda root: change(root / path, lambda content: content["images"][0].update(changes))


def _extra_ids(root: Path) -> None:
    change(root / "pid_splits.json", lambda splits: splits["train"].extend(["9998", "9999"]))


def _listed_twice(root: Path) -> None:
    change(root / "pid_splits.json", lambda splits: splits["train"].append("1"))


def _no_mapping(root: Path) -> None:
    change(root / "problems.json", lambda problems: problems.update({"1": [1, 2]}))


def _listed_only(root: Path) -> None:
    (root / "iconqa_data" / "pid_splits.json").write_text(json.dumps({"choose_txt_train": ["1", "77"]}))


def _half_a_json(root: Path) -> None:
    (root / "iconqa_data/iconqa/train/choose_txt/1/data.json").write_text('{"question": ')


@pytest.mark.parametrize(
    ("name", "damage", "said", "unusable"),
    [
        ("scienceqa", _extra_ids, ["question 9998: listed in pid_splits.json", "9999"], 2),
        ("scienceqa", _listed_twice, ["question 1: '1' is there twice"], 1),
        ("scienceqa", _problem(answer=3), ["question 1: 'answer' must be the index of one of 3 choices", "found 3"], 1),
        ("scienceqa", _problem(answer="a"), ["found 'a'"], 1),
        ("scienceqa", _problem(answer=True), ["found True"], 1),
        ("scienceqa", _problem(answer=-1), ["found -1"], 1),
        ("scienceqa", _problem(choices="red"), ["'choices' must be a list of at least two texts"], 1),
        ("scienceqa", _problem(choices=["red", " ", "x"]), ["'choices' must be a list of at least two texts"], 1),
        ("scienceqa", _problem(choices=["red", "red"], answer=1), ["repeats a single one"], 1),
        ("scienceqa", _problem(question=None), ["'question' must be a text, found None"], 1),
        ("scienceqa", _problem(hint=3), ["'hint' must be a text, found 3"], 1),
        ("scienceqa", _problem(image=["image.png"]), ["'image' must be a text"], 1),
        ("scienceqa", _problem(grade="grade13"), ["'grade' must be grade1 to grade12"], 1),
        ("scienceqa", _no_mapping, ["question 1: expected a mapping, found '[1, 2]'"], 1),
        ("iconqa", _data(answer=9), ["question 1: 'answer' must be the index"], 1),
        ("iconqa", _data(grade=1), ["'grade' must be a text, found 1"], 1),
        ("iconqa", _listed_only, ["question 77:", "data.json: can't be read (No such file"], 1),
        ("iconqa", _half_a_json, ["data.json: not JSON: line 1, column 14"], 1),
        ("vizwiz", _entry(answers="red"), ["train.json: record 1: 'answers' must be a list"], 1),
        ("vizwiz", _entry(answers=["red"]), ["record 1: expected a mapping, found 'red'"], 1),
        ("vizwiz", _entry(answers=[{"answer": 3}]), ["'answer' must be a text, found 3"], 1),
        ("vizwiz", _entry(answers=[{"answer": " "}]), ["record 1: no answer among"], 1),
        ("vizwiz", _entry(image=None), ["'image' must be a text, found None"], 1),
        ("flickr30k", _image(split="dev"), ["image 1: 'split' must be train, val or test, found 'dev'"], 1),
        ("flickr30k", _image(sentences=[]), ["image 1: no caption among []"], 1),
        ("flickr30k", _image(sentences=["a"]), ["image 1: expected a mapping, found 'a'"], 1),
        ("flickr30k", _image(filename=7), ["'filename' must be a text, found 7"], 1),
    ],
)
def test_questions_that_cannot_be_used(
    name: str, damage: Callable[[Path], None], said: list[str], unusable: int, official_download: Download
) -> None:
    source = official_download(name)
    damage(source)
    with pytest.raises(DataError) as caught:
        run(name, source)
    questions = "1 question" if unusable == 1 else f"{unusable} questions"
    assert f"{questions} can't be used; --drop-broken" in str(caught.value)
    assert all(words in str(caught.value) for words in said)
    result, records = run(name, source, drop_broken=True)
    assert (result["counts"]["train"]["dropped"], len(result["dropped"])) == (unusable, unusable)
    # An id that is only listed, or listed again, was never a question of the download.
    assert len(records["train"]) == (6 if damage in (_extra_ids, _listed_twice, _listed_only) else 5)


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("scienceqa", "problems.json", '{"1": ', "problems.json: not JSON: line 1"),
        ("scienceqa", "pid_splits.json", "[]", "pid_splits.json: expected a mapping, found '[]'"),
        ("scienceqa", "pid_splits.json", '{"train": ["1"], "val": []}', "'test' must list question ids, found None"),
        ("iconqa", "iconqa_data/pid2skills.json", "x", "pid2skills.json: not JSON"),
        ("iconqa", "iconqa_data/pid_splits.json", '{"choose_txt_val": 3}', "'choose_txt_val' must list question ids"),
        ("vizwiz", "Annotations/val.json", "{}", "val.json: expected a list, found '{}'"),
        ("vizwiz", "Annotations/val.json", "", "val.json: not JSON"),
        pytest.param(
            "vizwiz", "Annotations/val.json", "[" * 1_000_000, "val.json: can't be read (maximum", id="nested"
        ),
        ("flickr30k", "karpathy/dataset_flickr30k.json", "{}", "'images' must be a list, found 'None'"),
    ],
)
def test_files_that_cannot_be_used(name: str, file: str, content: str, said: str, official_download: Download) -> None:
    source = official_download(name)
    (source / file).write_text(content)
    with pytest.raises(DataError) as caught:
        run(name, source)
    assert said in str(caught.value)


def test_several_files_that_are_no_json_are_reported_together(official_download: Download) -> None:
    source = official_download("scienceqa")
    for name in ("problems", "pid_splits"):
        (source / f"{name}.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError) as caught:
        run("scienceqa", source)
    assert "problems.json: not a text file" in str(caught.value)
    assert "pid_splits.json: not a text file" in str(caught.value)


def test_a_repeated_choice_is_offered_once(official_download: Download) -> None:
    source = official_download("scienceqa")
    _problem(choices=["red", "blue", "red"], answer=2)(source)
    result, records = run("scienceqa", source)
    assert (records["train"][0]["choices"], records["train"][0]["answer"]) == (["red", "blue"], "red")
    assert "1 question (1): a choice is listed twice; it is offered once" in result["warnings"]


def test_blank_answers_and_other_numbers_of_them_are_remarked(official_download: Download) -> None:
    source = official_download("vizwiz")
    _entry(answers=[{"answer": "red"}, {"answer": ""}])(source)
    change(source / "Annotations" / "val.json", lambda entries: entries[0].update(answers=[{"answer": "red"}]))
    result, records = run("vizwiz", source)
    assert records["train"][0]["answer"] == ["red"]
    assert "1 question (VizWiz_train_00000000.jpg): an answer is blank; it was left out" in result["warnings"]
    assert "1 question (VizWiz_val_00000000.jpg): other than 10 answers" in result["warnings"]


def test_what_is_left_out_of_vizwiz_val_is_left_out_of_test(official_download: Download) -> None:
    source = official_download("vizwiz")
    change(source / "Annotations" / "val.json", lambda entries: entries[0].update(answers=None))
    (source / "val" / "VizWiz_val_00000001.jpg").unlink()
    result, records = run("vizwiz", source, drop_broken=True)
    assert [result["counts"][split]["dropped"] for split in SPLITS] == [0, 2, 2]
    assert len(result["dropped"]) == 2
    assert [record["question_id"] for record in records["test"]] == ["VizWiz_val_00000002.jpg"]


def test_a_split_without_any_usable_question(official_download: Download) -> None:
    source = official_download("scienceqa")
    for pid in ("8", "9", "10"):
        (source / "images" / "val" / pid / "image.png").unlink()
    with pytest.raises(DataError, match="no question that can be used in split val"):
        run("scienceqa", source, drop_broken=True)


def test_an_earlier_output_stays_until_the_new_one_is_whole(
    official_download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = official_download("scienceqa")
    output = source.parent / "prepared"
    run("scienceqa", source)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(before) == {"train.json", "val.json", "test.json", "dataset.yaml"}

    change(source / "problems.json", lambda problems: problems["1"].update(question="Which color?"))
    from lavis_peft.adapters import checkpoint

    plain, written = checkpoint.atomic_file, []

    def full_disk(path: Path) -> Any:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return plain(path)

    monkeypatch.setattr(checkpoint, "atomic_file", full_disk)
    with pytest.raises(DiskFull, match="no space left"):
        run("scienceqa", source)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    monkeypatch.undo()
    run("scienceqa", source)
    assert "Which color?" in (output / "train.json").read_text()


def test_an_output_that_is_a_file(official_download: Download) -> None:
    source = official_download("scienceqa")
    (source.parent / "prepared").write_text("in the way")
    with pytest.raises(ConfigError, match="can't be written to"):
        run("scienceqa", source)
    assert (source.parent / "prepared").read_text() == "in the way"


def test_a_folder_in_the_place_of_a_file_is_seen_before_anything_is_written(official_download: Download) -> None:
    source = official_download("scienceqa")
    (source.parent / "prepared" / "train.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"in the way of its files: the folder train\.json"):
        run("scienceqa", source)
    assert [path.name for path in (source.parent / "prepared").iterdir()] == ["train.json"]


def test_a_downloads_own_files_are_not_overwritten(official_download: Download) -> None:
    source = official_download("vizwiz")
    before = (source / "Annotations" / "train.json").read_bytes()
    with pytest.raises(ConfigError, match=r"has test\.json, train\.json, val\.json without the dataset\.yaml"):
        prepare(BENCHMARKS["vizwiz"], source, source / "Annotations")
    assert (source / "Annotations" / "train.json").read_bytes() == before
