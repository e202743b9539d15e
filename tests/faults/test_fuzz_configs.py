"""Run configs with anything in them: each is refused with a message, or read as the file has it."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lavis_peft
from lavis_peft.adapters.spec import parse_adapters
from lavis_peft.errors import UserError
from lavis_peft.runners.config_file import parse_options, read_run_file

lavis_peft.register()

from lavis_peft.runners.config import check_config, run_spec  # noqa: E402  after the plugin made LAVIS importable

settings.register_profile(
    "faults",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
FAULTS = settings.get_profile("faults")

LORA = {"peft_type": "LORA", "sublayers": ["cross_attention"], "r": 2, "lora_alpha": 2}
BUDGET = {"init_r": 4, "target_r": 2, "tinit": 0.1, "tfinal": 0.2, "deltaT": 1}
ADALORA = {"peft_type": "ADALORA", "sublayers": ["attention"], "lora_alpha": 4, **BUDGET}
CONFIG = {
    "model": {
        "arch": "blip2_t5_instruct_peft",
        "model_type": "tiny",
        "adapters": {"qformer": LORA, "llm": ADALORA, "train": ["query_tokens"], "budget": "separate"},
        "prompt": "Question: {}",
        "max_txt_len": 64,
        "load_finetuned": False,
        "vit_precision": "fp32",
    },
    "datasets": {
        "instruct_json": {
            "build_info": {
                "annotations": {"train": {"storage": "train.json"}, "val": {"storage": ["a.json", "b.jsonl"]}},
                "images": {"storage": "pictures"},
            },
            "prompt": "Question: {question} Options: {options} Short answer:",
            "target": "{answer}",
            "choices": ["yes", "no"],
            "max_samples": {"train": 8},
            "vis_processor": {"train": {"name": "peft_image", "image_size": 64}},
            "seed": 1,
        }
    },
    "run": {
        "runner": "runner_peft",
        "task": "multiple_choice_vqa",
        "lr_sched": "linear_warmup_cosine_lr",
        "init_lr": 1e-3,
        "min_lr": 0,
        "warmup_steps": 10,
        "max_epoch": 3,
        "batch_size_train": 2,
        "accum_grad_iters": 2,
        "device": "cpu",
        "amp": False,
        "train_splits": ["train"],
        "valid_splits": ["val"],
        "output_dir": "output",
        "resume_ckpt_path": None,
        "seed": 42,
    },
}

WORDS = st.sampled_from(
    [
        "",
        " ",
        "~",
        "~nobody/x",
        "null",
        "yes",
        "1e-3",
        "nan",
        "-1",
        "${run.seed}",
        "${",
        "???",
        "{question",
        "a: b",
        "\x00",
    ]
)
TEXTS = WORDS | st.text(max_size=12) | st.text(min_size=300, max_size=300, alphabet="ab/")
PLAIN = st.none() | st.booleans() | st.integers(-3, 5) | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(-1, 9), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a config with each of its keys or positions."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _changed(draw: Callable[[Any], Any], whole: Any) -> Any:
    """A config with one to three changes: a value of any kind, a key dropped, a key renamed, a key more."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(whole)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(["set", "set", "drop", "rename", "add"]))
        if kind == "set":
            holder[key] = draw(VALUES)
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            value = holder.pop(key) if kind == "rename" else draw(VALUES)
            holder[draw(TEXTS | st.just(f"{key}s") | st.integers(0, 3))] = value
    return whole


@st.composite
def configs(draw: Callable[[Any], Any]) -> Any:
    """A run config with changes."""
    return _changed(draw, CONFIG)


@st.composite
def adapters(draw: Callable[[Any], Any]) -> Any:
    """An adapters section with changes, or anything at all."""
    return _changed(draw, CONFIG["model"]["adapters"]) if draw(st.integers(0, 9)) else draw(VALUES)


@st.composite
def broken_yaml(draw: Callable[[Any], Any]) -> str:
    """The text of a run config, cut, or with something in it."""
    text = yaml.safe_dump(CONFIG)
    place = draw(st.integers(0, len(text)))
    signs = (
        "*a",
        "&a ",
        "!!python/name:os.system ",
        "\t",
        "[",
        "{",
        ": ",
        "- ",
        '"',
        "'",
        "%",
        "\x00",
        "---\n",
        "<<: ",
    )
    inserted = draw(st.sampled_from(signs) | st.text(max_size=5))
    end = draw(st.sampled_from([place, place, place + 1, len(text)]))
    return text[:place] + inserted + text[end:]


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """What was read, or the message of the refusal; any other error is the test's failure."""
    try:
        return read(), ""
    except UserError as error:
        refusal = error
    assert str(refusal).strip()
    assert refusal.exit_code == 2
    return None, str(refusal)


def _is_what_was_given(spec: Any, section: dict[str, Any]) -> bool:
    for key, value in section.items():
        if value is None or not hasattr(spec, key):
            continue
        found = getattr(spec, key)
        # Numbers may be written as text, splits as one name.
        same = (
            found == value
            or str(found) == str(value)
            or found in ((value,), tuple(value) if isinstance(value, list) else 0)
        )
        if not same and not (isinstance(value, str) and math.isclose(float(value), found)):
            return False
    return True


@settings(FAULTS, max_examples=350)
@given(config=configs())
def test_configs(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")

    def read() -> Any:
        found, _ = read_run_file(path)
        check_config(found, where=str(path))
        return run_spec(found.run)

    spec, refusal = outcome(read)
    assert refusal or _is_what_was_given(spec, yaml.safe_load(path.read_text(encoding="utf-8"))["run"])


@settings(FAULTS, max_examples=200)
@given(text=broken_yaml() | st.text(max_size=40) | st.binary(max_size=40))
def test_text_that_is_hardly_yaml(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    found, refusal = outcome(lambda: read_run_file(path))
    assert refusal or set(found[0]) == {"model", "datasets", "run"}


@settings(FAULTS, max_examples=250)
@given(section=adapters())
def test_adapters(section: Any) -> None:
    spec, refusal = outcome(lambda: parse_adapters(section, llm_family="t5"))
    if not refusal:
        again = parse_adapters(spec.as_dict(), llm_family="t5")
        assert again == spec


@settings(FAULTS, max_examples=150)
@given(
    key=st.sampled_from(["run.seed", "run.max_epoch", "model.prompt", "datasets.instruct_json.seed"]) | TEXTS,
    value=TEXTS,
)
def test_options(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    pairs, problems = parse_options([f"{key}={value}"])
    assert pairs or problems
    found, refusal = outcome(lambda: read_run_file(path, [f"{key}={value}"]))
    assert refusal or found[1] == [f"{key}={value}"]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "model: &m {x: *m}\nrun: {}\ndatasets: {}",
        "a: " + "[" * 3000,
        "a0: &a0 [x, x]\n" + "\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)),
        "run: ${run}",
        "run: {a: '${run.b}', b: '${run.a}'}\nmodel: {a: 1}\ndatasets: {a: 1}",
    ],
    ids=["itself", "itself in a mapping", "deep", "a billion", "interpolated itself", "interpolated in turn"],
)
def test_configs_without_an_end(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    found, refusal = outcome(lambda: read_run_file(path))
    assert found is None
    assert len(refusal) < 2000
