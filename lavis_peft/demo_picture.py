"""The demo's picture: a few test questions with the answers before and after tuning."""

import random
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lavis_peft.datasets.easy_vqa import data_dir, read_split

_COLUMNS, _ROWS = 4, 2
_SIDE, _WIDTH, _HEIGHT, _MARGIN = 160, 250, 250, 16
# Okabe and Ito's blue and vermilion, told apart by colour-blind readers too; a word says the same.
_RIGHT, _WRONG, _INK = "#0072B2", "#D55E00", "#222222"


def draw_examples(before: list[dict[str, Any]], after: list[dict[str, Any]], path: Path, seed: int = 0) -> None:
    """Draw eight test questions, chosen by the seed and by nothing else.

    Args:
        before: The base's predictions, one row a question.
        after: The tuned model's.
        path: PNG file to write.
        seed: Decides which questions.
    """
    records = {record.question_id: record for record in read_split(data_dir(), "test")}
    earlier = {row["question_id"]: row for row in before}
    chosen = random.Random(seed).sample(sorted(after, key=lambda row: int(row["question_id"])), _COLUMNS * _ROWS)
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH + _MARGIN, _ROWS * _HEIGHT + _MARGIN), "white")
    for number, row in enumerate(chosen):
        corner = (_MARGIN + number % _COLUMNS * _WIDTH, _MARGIN + number // _COLUMNS * _HEIGHT)
        _draw_one(sheet, corner, records[row["question_id"]], earlier[row["question_id"]], row)
    sheet.save(path)


def _draw_one(sheet: Image.Image, corner: tuple[int, int], record: Any, before: dict, after: dict) -> None:
    x, y = corner
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    with Image.open(record.image) as picture:
        sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
    draw.rectangle((x, y, x + _SIDE, y + _SIDE), outline="#999999")
    y += _SIDE + 4
    for line in textwrap.wrap(record.question, 32):
        draw.text((x, y), line, fill=_INK, font=font)
        y += 17
    for name, row in (("before", before), ("after", after)):
        word, color = ("right", _RIGHT) if row["correct"] else ("wrong", _WRONG)
        draw.text((x, y), f"{name}: {row['prediction']} ({word})", fill=color, font=font)
        y += 17
