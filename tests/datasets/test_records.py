import pytest

from lavis_peft.datasets.records import check_unique, raise_if, read_record
from lavis_peft.errors import DataError

GOOD = {"image": "a.png", "question": "which?", "answer": "x", "choices": ["x", "y"]}


def read(raw, used=("question", "answer"), fixed=(), default_id="0"):
    problems = []
    record = read_record(
        raw, "/pictures", "t.json: record 1", default_id, fixed_choices=fixed, used=used, problems=problems
    )
    return record, problems


def test_a_record_is_read():
    extra = {"question_id": 7, "question_type": "kind", "context": "c", "image_url": "ignored"}
    record, problems = read({**GOOD, **extra})
    assert problems == []
    assert (record.image, record.image_id, record.question) == ("/pictures/a.png", "a.png", "which?")
    assert (record.answers, record.choices) == (("x",), ("x", "y"))
    assert (record.question_id, record.question_type, record.context) == ("7", "kind", "c")
    assert record.where == "t.json: record 1 (question_id '7')"


def test_defaults_and_fixed_choices():
    raw = {"image": "/abs/b.png", "question": "q", "answer": ["x", "y", "x"], "question_id": None, "choices": []}
    record, problems = read(raw, fixed=("x", "y"))
    assert problems == []
    assert (record.image, record.question_id, record.choices) == ("/abs/b.png", "0", ("x", "y"))
    assert record.answers == ("x", "y", "x")


def test_groups_are_labels_by_name():
    record, problems = read({**GOOD, "groups": {"grade": "1-6", "modality": ["text", "image"]}})
    assert problems == []
    assert record.groups == {"grade": ("1-6",), "modality": ("text", "image")}
    assert read(GOOD)[0].groups == {}


def test_a_question_is_needed_only_where_the_prompt_uses_it():
    raw = {"image": "a.png", "answer": "x"}
    assert read(raw, used=("answer",))[1] == []
    assert read(raw)[1] == ["t.json: record 1: no 'question'"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "no 'image'"),
        ({"image": 3}, "'image' must be a text, found 3"),
        ({"question": " "}, "'question' is blank"),
        ({"answer": None, "answers": ["x"]}, "no 'answer'; is 'answers' meant to be it?"),
        ({"answer": 2}, "'answer' must be a text, found 2"),
        ({"answer": []}, "'answer' is an empty list"),
        ({"answer": ["x", 1]}, "'answer' must be a list of texts, found ['x', 1]"),
        ({"answer": "z"}, "answer 'z' isn't among the choices ['x', 'y']"),
        ({"answer": ["x", "z"]}, "answer 'z' isn't among the choices ['x', 'y']"),
        ({"choices": "x,y"}, "'choices' must be a list of texts, found 'x,y'"),
        ({"choices": ["x", "x"]}, "a choice is listed twice"),
        ({"choices": ["x"]}, "'choices' needs at least two, found ['x']"),
        ({"question_id": 1.5}, "'question_id' must be a text or a whole number, found 1.5"),
        ({"groups": ["1-6"]}, "'groups' must be a mapping from a name to a label or a list of labels, found ['1-6']"),
        ({"groups": {"grade": 3}}, "'groups': 'grade' must be a text or a list of texts, found 3"),
        ({"groups": {"grade": ["1-6", ""]}}, "'groups': 'grade' must be a text or a list of texts, found ['1-6', '']"),
        ({"group": {}}, "unknown field 'group' (did you mean 'groups'?)"),
        ({"question_typ": "k"}, "unknown field 'question_typ' (did you mean 'question_type'?)"),
    ],
)
def test_mistakes_are_named(changes, message):
    _, problems = read({**GOOD, **changes})
    assert len(problems) == 1 and problems[0].startswith(f"t.json: record 1: {message}")


def test_a_misspelt_optional_field():
    raw = {"image": "a.png", "question": "q", "answer": "x", "choises": ["x", "y"]}
    assert read(raw)[1] == ["t.json: record 1: unknown field 'choises' (did you mean 'choices'?)"]


def test_templates_that_need_choices():
    raw = {"image": "a.png", "question": "q", "answer": "x"}
    _, problems = read(raw, used=("question", "options", "letter"))
    assert problems == ["t.json: record 1: no 'choices', but the templates use {letter}{options}"]


def test_something_that_is_no_record():
    assert "expected a record" in read(["a.png", "x"])[1][0]


def test_doubled_ids_name_both_places():
    first, _ = read({**GOOD, "question_id": "q"})
    other, _ = read({**GOOD, "question_id": "r"})
    found = check_unique([first, other, first])
    assert found == ["t.json: record 1 (question_id 'q'): the same question_id as t.json: record 1"]


def test_many_problems_are_counted_and_ten_shown():
    with pytest.raises(DataError) as error:
        raise_if([f"problem {number}" for number in range(25)])
    text = str(error.value)
    assert text.startswith("25 problems:") and "problem 9" in text and "problem 10" not in text and "15 more" in text
