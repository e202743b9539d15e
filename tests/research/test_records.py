"""Annotation records of the research code in the plugin's form."""

from typing import Any

import pytest

from lavis_peft.research.records import READERS


@pytest.mark.parametrize(
    ("name", "raw", "wanted"),
    [
        (
            "scienceqa_peft",
            {"image": "i.png", "question": "q", "answer": "(b) two", "choices": ["one", "two"], "context": "c"},
            {"image": "i.png", "question": "q", "answer": "two", "choices": ["one", "two"], "context": "c"},
        ),
        (
            "scienceqa_peft",
            {"answer": "(c) two\nlines", "choices": ["one", "one", "two\nlines"]},
            {"answer": "two\nlines", "choices": ["one", "two\nlines"]},
        ),
        (
            "iconqa_peft",
            {
                "question": "q",
                "choices": ["1", "2"],
                "answer": 1,
                "ques_type": "choose_txt",
                "grade": "PreK",
                "split": "val",
                "id": "77",
            },
            {
                "image": "val/choose_txt/77/image.png",
                "question": "q",
                "choices": ["1", "2"],
                "answer": "2",
                "question_id": "77",
                "groups": {"grade": "PreK"},
            },
        ),
        (
            "vizwiz_peft",
            {
                "image": "VizWiz_train_00000001.jpg",
                "question": "q",
                "answers": [{"answer": "a", "answer_confidence": "yes"}, {"answer": "a"}, {"answer": "b"}],
                "answerable": 1,
            },
            {
                "image": "train/VizWiz_train_00000001.jpg",
                "question": "q",
                "answer": ["a", "a", "b"],
                "question_id": "VizWiz_train_00000001.jpg",
            },
        ),
        (
            "flickr30k_peft",
            {"image": "flickr30k-images/1.jpg", "caption": ["a", "b"]},
            {"image": "flickr30k-images/1.jpg", "question": "", "answer": ["a", "b"]},
        ),
    ],
)
def test_its_forms(name: str, raw: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert READERS[name](raw) == wanted
    assert READERS[name](wanted) == wanted


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("scienceqa_peft", {"answer": "(b) one", "choices": ["one", "two"]}),
        ("scienceqa_peft", {"answer": "(e) one", "choices": ["one", "two"]}),
        ("scienceqa_peft", {"answer": "(a) x", "choices": ["(a) x", "(b) y"]}),
        ("iconqa_peft", {"answer": 2, "choices": ["one", "two"], "id": "1", "split": "val"}),
        ("iconqa_peft", {"answer": True, "choices": ["one", "two"], "id": "1", "split": "val"}),
        ("vizwiz_peft", {"answers": ["a"], "image": "mine.jpg"}),
    ],
)
def test_what_is_wrong_in_it_is_left_for_the_reader_to_say(name: str, raw: dict[str, Any]) -> None:
    assert READERS[name](raw) is raw
