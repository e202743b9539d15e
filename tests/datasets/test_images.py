import numpy as np
import pytest
from PIL import Image, ImageFile

from lavis_peft.datasets.images import ImageFiles, UnreadableImage, check_images
from lavis_peft.datasets.records import Record
from lavis_peft.errors import DataError


def record(path, number=1):
    return Record(str(path), path.name, "q", ("x",), (), str(number), f"t.json: record {number}")


def test_present_pictures_pass(pictures):
    check_images([record(pictures / "a.png"), record(pictures / "b.png"), record(pictures / "a.png")])


def test_missing_pictures_are_listed_once_each(pictures):
    records = [record(pictures / f"{number // 2}.png", number) for number in range(40)]
    with pytest.raises(DataError) as error:
        check_images([record(pictures / "a.png"), *records])
    text = str(error.value)
    assert text.startswith("20 image files are missing:")
    assert f"{pictures / '0.png'}, named by t.json: record 0 (question_id '0')" in text
    assert "9.png" in text and "/10.png" not in text and "10 more" in text


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="1 image file is missing"):
        check_images([record(tmp_path / "nowhere" / "a.png")])


def test_pictures_are_read_as_rgb(tmp_path):
    Image.new("L", (4, 2), 7).save(tmp_path / "grey.png")
    image = ImageFiles().read(str(tmp_path / "grey.png"), "r")
    assert image.mode == "RGB" and image.size == (4, 2) and image.getpixel((0, 0)) == (7, 7, 7)


def test_the_cache_gives_the_same_pixels_without_the_file(pictures):
    path = pictures / "b.png"
    plain, cached = ImageFiles(), ImageFiles(cache=True)
    before = np.asarray(plain.read(str(path), "r"))
    cached.read(str(path), "r")
    path.unlink()
    assert (np.asarray(cached.read(str(path), "r")) == before).all()
    with pytest.raises(UnreadableImage):
        plain.read(str(path), "r")


@pytest.mark.parametrize("keep", [0, 20, 200])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp"])
def test_truncated_pictures_name_their_record(tmp_path, keep, suffix, monkeypatch):
    # As LAVIS leaves it: Pillow would fill up what is missing with grey and say nothing.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableImage) as error:
        ImageFiles().read(str(path), "t.json: record 5 (question_id 'q')")
    assert str(error.value).startswith(f"{path}: the image can't be read")
    assert str(error.value).endswith("named by t.json: record 5 (question_id 'q')")
