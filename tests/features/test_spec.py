"""`run.feature_cache` in a config: what it may be, and what of it counts when a run goes on."""

from pathlib import Path
from typing import Any

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.features.room import free_bytes
from lavis_peft.features.spec import CacheSpec, feature_cache
from lavis_peft.runners.comparison import check_same, config_differences, known_keys
from lavis_peft.runners.spec import parse_run


def parsed(value: Any) -> CacheSpec | None:
    return parse_run({"task": "multiple_choice_vqa", "feature_cache": value}).feature_cache


def test_a_folder_or_a_mapping() -> None:
    assert parsed(None) is None
    assert parsed("cache") == CacheSpec("cache", "half", 0)
    assert parsed({"dir": "cache", "dtype": "float32", "augmentations": 3}) == CacheSpec("cache", "float32", 3)
    assert parsed({"dir": "cache", "dtype": None}) == CacheSpec("cache")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"dir": "c", "dtype": "nonsense"}, "`dtype` is half or float32, not 'nonsense'"),
        ({"dir": "c", "augmentations": "many"}, "`augmentations` is a whole number, views of each picture, not 'many'"),
        ({"dir": "c", "augmentations": -1}, "`augmentations` is a whole number"),
        ({"dir": "c", "augmentations": True}, "`augmentations` is a whole number"),
        ({"dir": "c", "dtpye": "half"}, r"not of 'dtpye' \(did you mean 'dtype'\?\)"),
        ({"dtype": "half"}, "whose `dir` is one"),
        ("  ", "a folder"),
        (5, "a folder, or a mapping of augmentations, dir, dtype"),
        (["c"], "a folder, or a mapping"),
    ],
)
def test_anything_else_is_refused(value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"run.feature_cache: must be .*{expected}.*, found "):
        parsed(value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file, and must be a folder" in CacheSpec(str(tmp_path / "file")).folder_problem()
    assert f"{tmp_path / 'file'} in it is a file" in CacheSpec(str(tmp_path / "file" / "below")).folder_problem()
    assert CacheSpec(str(tmp_path / "new" / "below")).folder_problem() == ""
    assert not (tmp_path / "new").exists()


SAME = [
    (None, {"dir": "a", "dtype": "float32"}),
    ("a", "b"),
    ("a", {"dir": "b", "dtype": "half"}),
    ({"dir": "a", "augmentations": 2}, {"dir": "b", "augmentations": 2}),
]
OTHER = [
    (None, "a"),
    ("a", {"dir": "a", "dtype": "float32"}),
    ({"dir": "a", "dtype": "float32"}, {"dir": "a", "dtype": "float32", "augmentations": 2}),
]


def test_a_folder_that_cant_be_looked_for_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = feature_cache(str(tmp_path / ("x" * 300)))
    assert long.folder_problem().endswith("can't be used: File name too long")
    assert free_bytes(long.folder) > 0

    def refuse(self: Path, **_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)  # as below a folder that may not be entered
    assert feature_cache(str(tmp_path / "cache")).folder_problem() == ""


def config(value: Any) -> dict[str, Any]:
    return {"run": {"task": "t"} if value is None else {"task": "t", "feature_cache": value}}


@pytest.mark.parametrize(("before", "now"), SAME)
def test_a_run_goes_on_where_results_stay_the_same(before: Any, now: Any) -> None:
    assert config_differences(config(before), config(now)) == {}


@pytest.mark.parametrize(("before", "now"), OTHER)
def test_a_run_doesnt_go_on_with_other_rounding_or_draws(before: Any, now: Any) -> None:
    found = config_differences(config(before), config(now))
    assert found
    assert all(key.startswith("run.feature_cache") for key in found)
    assert len(check_same(found, ["run.feature_cache"], known_keys(config(before)), "a run")) == len(found)
