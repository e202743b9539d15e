"""The README says what the code does."""

from pathlib import Path

import pytest

import lavis_peft
from lavis_peft.keys import written_into

lavis_peft.register()

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_table_of_keys_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert written_into(text) == text, "run: python -m lavis_peft.keys README.md"


def test_a_file_without_markers_is_refused() -> None:
    with pytest.raises(lavis_peft.UserError, match="markers|missing"):
        written_into("no table here")


def test_every_command_is_known() -> None:
    from lavis_peft.cli import COMMANDS

    words = [
        line.split()[2] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("$ lavis-peft ")
    ]
    assert words
    assert set(words) <= set(COMMANDS)
