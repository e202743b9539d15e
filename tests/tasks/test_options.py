import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.tasks.options import CaptionOptions, TaskOptions, parse_options


def test_defaults_and_values():
    assert parse_options({"task": "multiple_choice_vqa", "seed": 1, "max_len": None}) == TaskOptions()
    assert parse_options({"open_ended": "generate", "num_beams": 1}) == TaskOptions("generate", num_beams=1)


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as error:
        parse_options({"open_ended": "generat", "num_beams": 0, "max_len": "ten", "min_len": True})
    assert error.value.problems == [
        "run.open_ended: found 'generat'; allowed: error, generate",
        "run.num_beams: expected a whole number of at least 1, found 0",
        "run.max_len: expected a whole number of at least 1, found 'ten'",
        "run.min_len: expected a whole number of at least 1, found True",
    ]


def test_lengths_that_contradict_each_other():
    with pytest.raises(ConfigError, match=r"run\.min_len: 12 is more than run\.max_len, 10"):
        parse_options({"min_len": 12})
    assert parse_options({"min_len": 12, "length_penalty": -1}, CaptionOptions).length_penalty == -1


def test_a_length_penalty_is_a_number():
    for wrong in ("1", True, float("nan"), [1]):
        with pytest.raises(ConfigError, match="run.length_penalty: expected a number"):
            parse_options({"length_penalty": wrong})
