"""The settings are those of the research code, by its numbers."""

from collections import Counter

import pytest

from lavis_peft.errors import ConfigError
from lavis_peft.experiments.settings import benchmark_of, benchmarks, paper_dir, setting_of, settings

#: The rows of the research code's table: first number, language model, part, sub-layers.
ROWS = [
    (first + 32 * number, llm, part, words)
    for number, llm in enumerate(("t5", "vicuna"))
    for first, part, words in (
        (1, "llm", "ffn"),
        (5, "llm", "attn"),
        (9, "llm", "all"),
        (13, "qformer", "ffn"),
        (17, "qformer", "self-attn"),
        (21, "qformer", "cross-attn"),
        (25, "qformer", "all"),
        (29, "both", "all"),
    )
]


def test_the_numbers_are_the_tables() -> None:
    expected = {
        str(first + place): (llm, part, words, rank)
        for first, llm, part, words in ROWS
        for place, rank in enumerate((1, 2, 4, 8))
    }
    numbered = {key: setting for key, setting in settings().items() if key.isdecimal()}
    assert {key: (s.llm, s.part, s.words, s.rank) for key, s in numbered.items()} == expected
    assert list(settings())[64:] == ["full-t5", "full-vicuna", "adalora-t5", "adalora-vicuna"]


@pytest.mark.parametrize(
    ("key", "qformer", "llm"),
    [
        ("4", "full", ["ffn"]),
        ("37", "full", ["attention"]),
        ("19", ["self_attention"], "frozen"),
        ("56", ["cross_attention"], "frozen"),
        ("60", ["self_attention", "cross_attention", "ffn"], "frozen"),
        ("32", ["self_attention", "cross_attention", "ffn"], ["attention", "ffn"]),
        ("full-vicuna", "full", "frozen"),
    ],
)
def test_what_is_tuned(key: str, qformer: object, llm: object) -> None:
    setting = setting_of(key)
    for part, words in (("qformer", qformer), ("llm", llm)):
        adapter = setting.adapters[part]
        assert (adapter if isinstance(adapter, str) else adapter["sublayers"]) == words
        if not isinstance(adapter, str):
            assert {**adapter, "sublayers": 0} == {
                "peft_type": "LORA",
                "sublayers": 0,
                "r": setting.rank,
                "lora_alpha": 8,
            }


def test_learning_rates_and_epochs_are_those_of_the_128_configs() -> None:
    cells = [(s, name) for s in settings().values() for name in s.published]
    assert len(cells) == 128
    assert {name for _, name in cells} == {"scienceqa", "iconqa"}
    rates = Counter(setting.run[name]["init_lr"] for setting, name in cells)
    assert rates == {1e-5: 7, 2e-5: 41, 1e-4: 12, 5e-4: 68}
    others = {(s.key, name, s.run[name]["max_epoch"]) for s, name in cells if s.run[name]["max_epoch"] != 15}
    assert others == {("6", "iconqa", 10), ("38", "iconqa", 10)}


@pytest.mark.parametrize(
    ("dataset", "rate", "keys"),
    [
        ("scienceqa", 1e-4, "19 22 29 31 32 61"),
        ("iconqa", 1e-4, "15 26 31 61 62 63"),
        ("iconqa", 1e-5, "5 8 9 12 33 40 42"),
    ],
)
def test_where_the_rarer_learning_rates_are(dataset: str, rate: float, keys: str) -> None:
    numbered = [setting for setting in settings().values() if dataset in setting.published]
    assert [s.key for s in numbered if s.run[dataset]["init_lr"] == rate] == keys.split()


def test_what_is_not_published_is_called_ours() -> None:
    for setting in settings().values():
        assert set(setting.run) == set(benchmarks())
        assert set(setting.published) == ({"scienceqa", "iconqa"} if setting.rank else set())
    run = setting_of("19").run
    assert run["vizwiz"] == run["scienceqa"] == {"init_lr": 1e-4, "max_epoch": 15}
    assert run["flickr30k"] == {"init_lr": 1e-4, "max_epoch": 5}
    assert setting_of("6").run["vizwiz"]["max_epoch"] == 15


def test_adalora_ends_with_the_rank_of_the_lora_settings() -> None:
    lora, adalora = (setting_of(key).adapters["qformer"] for key in ("28", "adalora-t5"))
    assert adalora["peft_type"] == "ADALORA"
    assert adalora["sublayers"] == lora["sublayers"]
    assert adalora["target_r"] == lora["r"]
    assert adalora["lora_alpha"] / adalora["init_r"] == lora["lora_alpha"] / lora["r"]
    assert setting_of("adalora-vicuna").adapters == setting_of("adalora-t5").adapters


def test_names_that_are_none() -> None:
    assert setting_of("07") is setting_of("7")
    for key in ("0", "65", "full"):
        with pytest.raises(ConfigError, match=f"experiment '{key}': unknown.*known: 1 to 64, adalora-t5"):
            setting_of(key)
    with pytest.raises(ConfigError, match="did you mean 'adalora-t5'"):
        setting_of("adalora_t5")
    with pytest.raises(ConfigError, match="known: flickr30k, iconqa, scienceqa, vizwiz"):
        benchmark_of("coco")


@pytest.mark.parametrize("path", sorted(paper_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_says_what_it_is_for(path) -> None:
    head = path.read_text().splitlines()[:9]
    for word in ("# Purpose:", "# Needs:", "# Command: lavis-peft experiments"):
        assert any(line.startswith(word) for line in head), word


def test_there_are_only_the_yamls_that_are_read() -> None:
    names = {path.stem for path in paper_dir().glob("*.yaml")}
    assert names == {"settings", "datasets", "adalora", "t5", "vicuna"}
