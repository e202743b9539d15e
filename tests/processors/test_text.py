import pytest
from omegaconf import OmegaConf

import lavis_peft
from lavis_peft.errors import ConfigError


@pytest.fixture(scope="module")
def processor_class():
    lavis_peft.register()
    from lavis_peft.processors import PROCESSORS

    return PROCESSORS["instruct_blip_question"]


def test_marks_are_dropped_and_case_is_kept(processor_class):
    assert processor_class()("  What* is#this;? No! Yes.  ") == "What isthis? No Yes."


def test_line_breaks_survive_and_long_texts_are_cut(processor_class):
    process = processor_class.from_config(OmegaConf.create({"name": "instruct_blip_question", "max_words": 3}))
    assert process("(a) one\n(b) two three") == "(a) one\n(b) two"


def test_the_default_is_a_thousand_words(processor_class):
    assert len(processor_class.from_config()("w " * 1500).split()) == 1000


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"max_wrods": 3}, "max_wrods: unknown key (did you mean 'max_words'?)"),
        ({"max_words": 0}, "max_words: expected a whole number of at least 1, found 0"),
        ({"max_words": "many"}, "found 'many'"),
        ({"max_words": True}, "found True"),
    ],
)
def test_wrong_options(processor_class, cfg, message):
    with pytest.raises(ConfigError) as error:
        processor_class.from_config(OmegaConf.create({"name": "instruct_blip_question", **cfg}))
    assert message in str(error.value)
