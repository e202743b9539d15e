import pytest

from lavis_peft.datasets.files import annotation_files, locate, read_annotations
from lavis_peft.datasets.spec import Annotations
from lavis_peft.errors import DataError


def test_the_working_directory_comes_before_lavis_cache(tmp_path, monkeypatch):
    work, cache = tmp_path / "work", tmp_path / "cache"
    for folder in (work, cache):
        folder.mkdir()
        (folder / "both.json").write_text("[]")
    (cache / "cached.json").write_text("[]")
    monkeypatch.chdir(work)
    assert locate("both.json", str(cache)) == work / "both.json"
    assert locate("cached.json", str(cache)) == cache / "cached.json"
    assert locate("neither.json", str(cache)) is None


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.json").write_text("[]")
    assert locate("~/x.json", None) == tmp_path / "x.json"


def test_a_local_url_is_read_where_it_is(tmp_path):
    source = tmp_path / "source.json"
    source.write_text("[]")
    assert annotation_files(Annotations(("stored.json",), (str(source),)), "a.train", None) == [source]


def test_every_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as error:
        annotation_files(Annotations(("one.json", "two.json"), ("https://x.org/one.json",)), "a.train", None)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("a.train.storage: no file 'one.json'") and "fetch https://x.org/one.json" in lines[0]
    assert lines[1].startswith("a.train.storage: no file 'two.json'") and "fetch" not in lines[1]


def test_a_folder_is_no_annotation_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        annotation_files(Annotations((str(tmp_path),)), "a.train", None)


def test_json_and_jsonl_are_told_apart_by_content(write):
    assert read_annotations(write("a.json", '\n [{"x": 1}, {"x": 2}]')) == [
        ("record 1", {"x": 1}),
        ("record 2", {"x": 2}),
    ]
    lines = '\ufeff{"x": 1}\r\n\n{"x": "a\u2028b"}\n'
    assert read_annotations(write("b.txt", lines)) == [("line 1", {"x": 1}), ("line 3", {"x": "a\u2028b"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n ", "the file is empty"),
        ("[]", "the list is empty"),
        ('[{"x": 1},\n {"x" 2}]', "not JSON: line 2, column 7"),
        ('{"x": 1}\n{"x": 2\n', "not JSON: line 2"),
        pytest.param("[" * 1_000_000, "can't be read: maximum recursion", id="nested"),
        pytest.param('{"x": 1}\n' + '{"x":' * 1_000_000, "line 2 can't be read: maximum recursion", id="nested-line"),
        ('{\n "records": []\n}', "neither a JSON list nor one record a line: line 1"),
        ("image,answer\n", "neither a JSON list nor one record a line: line 1"),
    ],
)
def test_damaged_files(write, text, message):
    path = write("damaged.json", text)
    with pytest.raises(DataError) as error:
        read_annotations(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_binary_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        read_annotations(path)
