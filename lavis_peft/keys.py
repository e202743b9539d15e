"""The table of every run-config key that is the plugin's, made from the typed specs that read them.

``python -m lavis_peft.keys README.md`` writes it between the markers in a file.
"""

import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from lavis_peft.errors import UserError

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"

Row = tuple[str, str, str]


def rows() -> list[tuple[str, list[Row]]]:
    """Every section with its keys, defaults and meanings, in the order of a run config."""
    from lavis_peft.adapters.spec import documented_keys
    from lavis_peft.datasets.spec import EasyVqaSpec, InstructJsonSpec
    from lavis_peft.models.spec import ModelSpec
    from lavis_peft.runners.spec import IterRunSpec, RunSpec
    from lavis_peft.tasks.options import CaptionOptions, TaskOptions

    adapters = [(key, default, meaning) for key, _, default, meaning in documented_keys("adapters")]
    own = {field.name for field in fields(InstructJsonSpec)}
    easy = [row for row in _rows(EasyVqaSpec) if row[0] not in own]
    shared = {field.name for field in fields(RunSpec)}
    task = {field.name for field in fields(TaskOptions)}
    return [
        ("`model`", [row for row in _rows(ModelSpec) if row[0] not in ("llm", "adapters")]),
        ("`model`, its language model", [("t5_model, llm_model", "", _meaning(ModelSpec, "llm"))]),
        ("`model.adapters`", adapters),
        ("`datasets.instruct_json`", _rows(InstructJsonSpec)),
        ("`datasets.easy_vqa`, besides those of `instruct_json` that concern any data", easy),
        ("`run`, with `runner: runner_peft`", [row for row in _rows(RunSpec) if row[0] not in task]),
        (
            "`run`, with `runner: runner_peft_iter`: those of `runner_peft` without `max_epoch`, and",
            [row for row in _rows(IterRunSpec) if row[0] not in shared],
        ),
        ("`run`, with `task: multiple_choice_vqa`; but for `open_ended`, also `vqa_accuracy_peft`", _rows(TaskOptions)),
        ("`run`, with `task: captioning_peft`", _rows(CaptionOptions)),
    ]


def markdown() -> str:
    """The tables, one for each section."""
    parts = []
    for title, table in rows():
        lines = [f"**{title}**", "", "| key | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{key}` | {_code(default)} | {_cell(meaning)} |" for key, default, meaning in table]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def written_into(text: str) -> str:
    """A file's text with the tables between its markers.

    Raises:
        UserError: The markers aren't there.
    """
    if BEGIN not in text or END not in text:
        raise UserError(f"no place for the table of keys: the lines {BEGIN} and {END} are missing")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{markdown()}\n{END}{rest.split(END, 1)[1]}"


def _rows(spec: Any) -> list[Row]:
    return [(field.name, _default(field), field.metadata["meaning"]) for field in fields(spec)]


def _meaning(spec: Any, name: str) -> str:
    return next(field.metadata["meaning"] for field in fields(spec) if field.name == name)


def _default(field: Field) -> str:
    if field.default is MISSING or field.default is None or field.default == "":
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return str(value).lower() if isinstance(value, bool) else str(value)


def _code(default: str) -> str:
    return f"`{default}`" if default and "`" not in default else default


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(written_into(target.read_text()))
