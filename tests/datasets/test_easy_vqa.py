import json
from collections import Counter

import pytest

from lavis_peft.datasets import easy_vqa
from lavis_peft.errors import DataError, MissingExtra


@pytest.fixture(scope="module")
def splits():
    folder = easy_vqa.data_dir()
    return {split: easy_vqa.read_split(folder, split) for split in ("train", "test")}


def test_every_question_is_there_once(splits):
    assert {split: len(records) for split, records in splits.items()} == {"train": 38575, "test": 9673}
    for n_images, (split, records) in zip((4000, 1000), splits.items(), strict=True):
        assert len({record.question_id for record in records}) == len(records)
        assert {record.image_id for record in records} == {f"{split}/{number}" for number in range(n_images)}


def test_every_answer_is_among_its_questions_choices(splits):
    for record in (record for records in splits.values() for record in records):
        assert record.answers[0] in record.choices


def test_choices_depend_on_the_question_alone(splits):
    choices = {}
    for record in (record for records in splits.values() for record in records):
        assert choices.setdefault(record.question, record.choices) == record.choices
    assert set(choices.values()) == set(easy_vqa.CHOICES.values())


def test_kinds_are_those_that_the_set_states(splits):
    for split, yes_no in (("train", 28407), ("test", 7136)):
        kinds = Counter(record.question_type.split("/")[0] for record in splits[split])
        assert set(kinds) == {"yes_no", "color", "shape"} and kinds["yes_no"] == yes_no


def test_the_answers_are_the_sets_own():
    easy_vqa.check_answers(easy_vqa.data_dir())


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("is there a red shape?", "yes_no/plain"),
        ("is no red shape present?", "yes_no/negated"),
        ("does the image not contain a circle?", "yes_no/negated"),
        ("what color is the circle?", "color"),
        ("what is the color of the shape?", "color"),
        ("what is the blue shape?", "shape"),
        ("what shape is in the image?", "shape"),
        ("how many shapes are there?", None),
        ("what is this?", None),
    ],
)
def test_kind_of_a_question(question, kind):
    assert easy_vqa.question_type(question) == kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[", "not JSON"),
        (json.dumps([["what shape is present?", "red", 0]]), "record 1: answer 'red' isn't among the choices"),
        (json.dumps([["why?", "red", 0]]), "record 1: a question of no known form: 'why?'"),
        (json.dumps([["why?", "red"]]), "record 1: expected [question, answer, image number]"),
    ],
)
def test_damaged_questions(tmp_path, content, message):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text(content)
    with pytest.raises(DataError) as error:
        easy_vqa.read_split(tmp_path, "train")
    assert "questions.json" in str(error.value) and message in str(error.value)


def test_a_folder_that_is_not_easy_vqa(tmp_path):
    with pytest.raises(DataError, match=r"answers\.txt: can't be read"):
        easy_vqa.check_answers(tmp_path)
    (tmp_path / "answers.txt").write_text("yes\nno\nmaybe\n")
    with pytest.raises(DataError, match="expected the answers"):
        easy_vqa.check_answers(tmp_path)
    with pytest.raises(DataError, match=r"questions\.json: can't be read"):
        easy_vqa.read_split(tmp_path, "train")


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"lavis-peft\[demo\]"):
        easy_vqa.data_dir()
