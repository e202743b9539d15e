"""Annotation files with anything in them: each is refused with a message, or its records are what the file has."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lavis_peft
from lavis_peft.adapters.history_file import HISTORY, read_history
from lavis_peft.adapters.report import run_report
from lavis_peft.adapters.report_text import run_text
from lavis_peft.errors import UserError

lavis_peft.register()

from omegaconf import OmegaConf  # noqa: E402

from lavis_peft.datasets.builders import InstructJsonBuilder  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.paths import plugin_configs_dir  # noqa: E402
from lavis_peft.runners.finished import finished_metrics  # noqa: E402
from lavis_peft.runners.folders import FINISHED  # noqa: E402
from lavis_peft.tasks.results import write_json  # noqa: E402

settings.register_profile(
    "records",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
FAULTS = settings.get_profile("records")

RECORD = {
    "image": "a.png",
    "question": "is it red?",
    "answer": "yes",
    "choices": ["yes", "no"],
    "question_id": 7,
    "question_type": "color/red",
    "context": "a picture",
}
RECORDS = [RECORD, {**RECORD, "question_id": "8", "answer": ["yes", "no"]}, {"image": "a.png", "answer": "no"}]

ODD = ("", " ", "~", "../a.png", "a.png\x00", "\ud800", "a" * 300, "\u2028", "answer", "yes", "0", "./a.png")
#: What means something in JSON, or stands before it.
SIGNS = (b"[", b"{", b"\n", b",", b'"', b"NaN", b"\xef\xbb\xbf", b"9" * 5000)
TEXTS = st.sampled_from(ODD) | st.text(max_size=8) | st.text(st.characters(), max_size=3)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=5
)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Any]:
    """Make the dataset of an annotation file with this content."""
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    section = yaml.safe_load((plugin_configs_dir() / "datasets" / "instruct_json" / "defaults.yaml").read_text())
    section = section["datasets"]["instruct_json"]
    section["build_info"] = {"annotations": {"train": {"storage": str(folder / "train.json")}}}
    builder = InstructJsonBuilder(OmegaConf.create(section))

    def make(content: bytes) -> Any:
        (folder / "train.json").write_bytes(content)
        return builder.build()["train"]

    return make


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """What was read, or the message of the refusal; any other error is the test's failure."""
    try:
        return read(), ""
    except UserError as error:
        refusal = error
    assert str(refusal).strip()
    assert refusal.exit_code == 2
    return None, str(refusal)


def _places(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def changed(draw: Callable[[Any], Any], whole: Any) -> Any:
    """A copy with one or two changes: a value of any kind, one dropped, one renamed, one more."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        places = _places(whole)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(["set", "set", "drop", "rename", "add"]))
        if kind == "set":
            holder[key] = draw(VALUES)
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, draw(VALUES))
        else:
            value = holder.pop(key) if kind == "rename" else draw(VALUES)
            holder[draw(TEXTS | st.sampled_from([f"{key}s", "choises", "questions"]))] = value
    return whole


@st.composite
def files(draw: Callable[[Any], Any]) -> bytes:
    """An annotation file, as a list or one record a line, with changes."""
    records = changed(draw, RECORDS)
    if draw(st.booleans()) or not isinstance(records, list):
        return json.dumps(records).encode()
    return "\n".join(json.dumps(record) for record in records).encode()


@st.composite
def broken_files(draw: Callable[[Any], Any]) -> bytes:
    """An annotation file's bytes, cut, or with something in them."""
    raw = json.dumps(RECORDS).encode()
    place = draw(st.integers(0, len(raw)))
    inserted = draw(st.binary(max_size=4) | st.sampled_from(SIGNS))
    return raw[:place] + inserted + raw[draw(st.sampled_from([place, place, place + 1, len(raw)])) :]


def _is_what_was_given(dataset: Any, raw: bytes, folder: Path) -> bool:
    """Whether each record has the texts of the file, and can be shown and written."""
    text = raw.decode("utf-8-sig")
    lines = [text] if text.lstrip()[:1] == "[" else [line for line in text.split("\n") if line.strip()]
    given = json.loads(text) if lines == [text] else [json.loads(line) for line in lines]
    read = dataset.records
    for record, entry in zip(read, [given] if isinstance(given, dict) else given, strict=True):
        answers = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
        named = entry.get("question_id")
        same = (
            all(getattr(record, key) == (entry.get(key) or "") for key in ("question", "question_type", "context"))
            and list(record.answers) == answers
            and list(record.choices) == (entry.get("choices") or [])
            and (named is None or record.question_id == str(named))
        )
        if not same:
            return False
        write_json(folder / "written.json", [record.question, record.answers, record.question_id])
    return len({record.question_id for record in read}) == len(read)


@settings(FAULTS, max_examples=400)
@given(raw=files() | broken_files())
def test_annotations(raw: bytes, build: Callable[[bytes], Any], tmp_path: Path) -> None:
    dataset, refusal = outcome(lambda: build(raw))
    assert refusal or _is_what_was_given(dataset, raw, tmp_path)
    assert refusal or all(dataset[number] for number in range(len(dataset)))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_annotations_that_json_chokes_on(raw: bytes, build: Callable[[bytes], Any]) -> None:
    _, refusal = outcome(lambda: build(raw))
    assert "train.json: " in refusal


LAYER = {"part": "qformer", "name": "a.query", "word": "self_attention", "layer": 0, "init_r": 4, "price": 8}
BUDGET = {"initial": 4, "target": 2, "total_step": 9, "tinit": 1, "tfinal": 1, "deltaT": 1}
HISTORY_OF_A_RUN = {
    "version": 1,
    "unit": "rank",
    "step": 9,
    "layers": [LAYER],
    "pools": [{"name": "qformer", "parts": ["qformer"], **BUDGET}],
    "changes": [[1, 0, 3], [2, 0, 2]],
    "ranks": [2],
    "importance": [0.5],
    "importance_kept": [None],
}


@st.composite
def histories(draw: Callable[[Any], Any]) -> Any:
    """AdaLoRA's record of a run, with changes."""
    return changed(draw, HISTORY_OF_A_RUN)


@settings(FAULTS, max_examples=250)
@given(content=histories())
def test_rank_histories(content: Any, tmp_path: Path) -> None:
    (tmp_path / "result").mkdir(exist_ok=True)
    (tmp_path / HISTORY).write_text(json.dumps(content))
    found, refusal = outcome(lambda: read_history(tmp_path))
    if not refusal:
        assert found == json.loads(json.dumps(content)) or "NaN" in json.dumps(content)
        assert run_text(run_report(found))


CONFIG = {"model": {"arch": "a"}, "datasets": {"b": {}}, "run": {"test_splits": ["test"], "runner": "runner_peft"}}


@st.composite
def marks(draw: Callable[[Any], Any]) -> Any:
    """The mark of a finished run, with changes."""
    return changed(draw, {"metrics": {"test": {"accuracy": 50.0}}, "config": CONFIG})


@settings(FAULTS, max_examples=150)
@given(content=marks())
def test_marks_of_a_finished_run(content: Any, tmp_path: Path) -> None:
    (tmp_path / FINISHED).write_text(json.dumps(content))
    found, refusal = outcome(lambda: finished_metrics(tmp_path, CONFIG))
    assert not refusal
    assert found is None or json.dumps(found) == json.dumps(content["metrics"])
