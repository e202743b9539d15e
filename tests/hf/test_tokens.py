"""Tokenizer files, with and without the token that stands for the image."""

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_peft.errors import CheckpointError
from lavis_peft.hf.tokens import copy_tokenizer


def _folder(path: Path, **files: Any) -> Path:
    path.mkdir()
    for name, content in files.items():
        file = path / name.replace("__", ".")
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_image_token_is_taken_out_wherever_it_is(tmp_path: Path) -> None:
    image = {"id": 3, "content": "<image>", "special": True}
    source = _folder(
        tmp_path / "a",
        tokenizer__json={"added_tokens": [{"id": 0, "content": "</s>"}, image], "model": {"vocab": {"<image>": 1}}},
        tokenizer_config__json={
            "added_tokens_decoder": {"0": {"content": "</s>"}, "3": {"content": "<image>"}},
            "additional_special_tokens": ["<image>", "<x>"],
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
            "eos_token": "</s>",
        },
        added_tokens__json={"<image>": 3, "[PAD]": 2},
        vocab__txt="<image>\n",
        weights__bin="no tokenizer file",
    )
    names = copy_tokenizer(source, tmp_path / "b", without_image=True)
    assert sorted(names) == ["added_tokens.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    read = {name: json.loads((tmp_path / "b" / name).read_text()) for name in names if name.endswith("json")}
    assert read["tokenizer.json"]["added_tokens"] == [{"id": 0, "content": "</s>"}]
    assert read["tokenizer.json"]["model"] == {"vocab": {"<image>": 1}}  # a word of its own, not an added one
    assert read["tokenizer_config.json"] == {
        "added_tokens_decoder": {"0": {"content": "</s>"}},
        "additional_special_tokens": ["<x>"],
        "extra_special_tokens": {},
        "eos_token": "</s>",
    }
    assert read["added_tokens.json"] == {"[PAD]": 2}
    assert (tmp_path / "b" / "vocab.txt").read_text() == "<image>\n"


def test_a_plain_copy_keeps_everything_that_other_versions_can_read(tmp_path: Path) -> None:
    config = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "eos_token": "<image>"}
    source = _folder(tmp_path / "a", tokenizer_config__json=config, vocab__txt="x")
    assert copy_tokenizer(source, tmp_path / "b") == ["tokenizer_config.json", "vocab.txt"]
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<image>",
    }


def test_a_folder_without_a_tokenizer_gives_no_files(tmp_path: Path) -> None:
    assert copy_tokenizer(_folder(tmp_path / "a", weights__bin=""), tmp_path / "b") == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = _folder(tmp_path / "source", tokenizer_config__json="{")
    with pytest.raises(CheckpointError, match="tokenizer_config.json: not JSON"):
        copy_tokenizer(source, tmp_path / "target")
