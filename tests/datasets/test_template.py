import pytest

from lavis_peft.datasets.template import letter, options, parse_template
from lavis_peft.errors import ConfigError

FIELDS = ("question", "context", "options", "choices")


def test_fields_are_filled_in():
    template = parse_template("<Image> Question: {question} Options: {options}. Short answer:", FIELDS, "p")
    assert template.fields == {"question", "options"}
    values = {"question": "which?", "options": options(["x", "y"])}
    assert template.render(values) == "<Image> Question: which? Options: (a) x (b) y. Short answer:"


def test_double_braces_are_literal_and_values_are_not_parsed():
    template = parse_template("Context: {{{context}}} Question: {{{question}}}", FIELDS, "p")
    assert template.render({"context": "{question}", "question": "a{b}"}) == "Context: {{question}} Question: {a{b}}"


def test_a_template_without_fields():
    assert parse_template("a short description:", FIELDS, "p").render({}) == "a short description:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{qestion}", "datasets.x.prompt: unknown field '{qestion}' (did you mean 'question'?)"),
        ("{}", "unknown field '{}'"),
        ("{question.upper}", "unknown field '{question.upper}'"),
        ("{question:>9}", "'{question}' takes no format"),
        ("{question!r}", "'{question}' takes no format"),
        ("{question", "write a literal brace double, {{ or }}"),
        ("question}", "write a literal brace double, {{ or }}"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ConfigError) as error:
        parse_template(text, FIELDS, "datasets.x.prompt")
    assert message in str(error.value)


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as error:
        parse_template("{one} {two}", FIELDS, "p")
    assert len(error.value.problems) == 2


def test_letters_go_on_after_z():
    assert [letter(index) for index in (0, 1, 25, 26, 27, 701, 702)] == ["a", "b", "z", "aa", "ab", "zz", "aaa"]
