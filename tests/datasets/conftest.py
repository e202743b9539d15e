import json

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path):
    """A folder of three small pictures, one colour each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0)), ("c", (0, 0, 255))):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def write(tmp_path):
    """Writes a file of annotations: JSON, or text as it is."""

    def write_file(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file
