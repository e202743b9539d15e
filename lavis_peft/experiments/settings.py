"""The settings of Kim et al. 2024 by number, and the benchmarks; read from `projects/paper`.

Nothing in here imports torch or LAVIS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError
from lavis_peft.paths import projects_dir

#: Base configs by the short name of their language model.
LLM_TITLES = {"t5": "FLAN-T5-XL", "vicuna": "Vicuna-7B"}
#: What a setting tunes with an adapter; `full` and `adalora` are those beside the numbered ones.
PARTS = ("llm", "qformer", "both", "full", "adalora")
_WORDS = {
    ("ffn",): "ffn",
    ("attention",): "attn",
    ("attention", "ffn"): "all",
    ("self_attention",): "self-attn",
    ("cross_attention",): "cross-attn",
    ("self_attention", "cross_attention", "ffn"): "all",
}


@dataclass(frozen=True)
class Setting:
    """One setting: what is tuned, and how on each benchmark.

    Args:
        key: Its number, or its name beside the numbered ones: `full-t5`, `adalora-vicuna`, ….
        llm: The language model: a key of `LLM_TITLES`.
        part: One of `PARTS`.
        words: The adapted sub-layers in the words of the paper's table; empty for `full`.
        rank: LoRA's r; None where there is none, or none that is fixed.
        adapters: The section `model.adapters`.
        run: Benchmark -> what the setting says of the section `run`: learning rate and epochs.
        published: The benchmarks whose entry in ``run`` is the research code's own.
    """

    key: str
    llm: str
    part: str
    words: str
    rank: int | None
    adapters: Mapping[str, Any]
    run: Mapping[str, Mapping[str, Any]]
    published: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """The row of the paper's table that it is in."""
        head = {
            "llm": "LLM LoRA",
            "qformer": "Q-Former LoRA",
            "both": "Q-Former and LLM LoRA",
            "full": "full Q-Former tuning",
            "adalora": "Q-Former AdaLoRA",
        }[self.part]
        words = f"{self.words}, " if self.words else ""
        return f"{head} ({words}{LLM_TITLES[self.llm]})"

    @property
    def title(self) -> str:
        """Its row and rank."""
        return f"{self.row}, r {self.rank}" if self.rank is not None else self.row


@dataclass(frozen=True)
class Benchmark:
    """A data set of the paper, as `projects/paper/datasets.yaml` has it.

    Args:
        name: The short name, as in `lavis-peft prepare NAME`.
        title: Its name in tables.
        metric: What its task's `agg_metrics` is.
        settings_of: The benchmark whose learning rates and epochs are used, where none are published.
        max_epoch: The epochs of settings that aren't published, if they are not the other benchmark's.
        config: The sections of a run config that it brings.
    """

    name: str
    title: str
    metric: str
    settings_of: str | None
    max_epoch: int | None
    config: Mapping[str, Any]

    @property
    def builder(self) -> str:
        """The name of its builder in LAVIS's registry."""
        return next(iter(self.config["datasets"]))


def paper_dir() -> Path:
    """The folder with the experiments' YAMLs."""
    return projects_dir() / "paper"


def read_paper_yaml(name: str) -> dict[str, Any]:
    """The mapping in one of the experiments' YAMLs."""
    return yaml.safe_load((paper_dir() / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def benchmarks() -> dict[str, Benchmark]:
    """The benchmarks by short name, in the order of the tables."""
    return {
        name: Benchmark(**{"name": name, "settings_of": None, "max_epoch": None, **entry})
        for name, entry in read_paper_yaml("datasets").items()
    }


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its key: `1` to `64`, then `full-…` and `adalora-…`."""
    table = read_paper_yaml("settings")
    found = [each for group in table["groups"] for each in _group(group, table)]
    full, adalora = table["full"], read_paper_yaml("adalora")
    words = _WORDS[tuple(adalora["adapters"]["qformer"]["sublayers"])]
    found += [_besides("full", llm, full["run"], full["adapters"]) for llm in LLM_TITLES]
    found += [_besides("adalora", llm, adalora["run"], adalora["adapters"], words) for llm in LLM_TITLES]
    return {setting.key: setting for setting in found}


def setting_of(key: str) -> Setting:
    """The setting of a number or name.

    Raises:
        ConfigError: There is none.
    """
    known = settings()
    # `007` and `7` are one number.
    key = str(int(key)) if key.isdecimal() else key
    if key not in known:
        names = [name for name in known if not name.isdecimal()]
        raise ConfigError(f"experiment {key!r}: unknown{suggestion(key, names)}; known: 1 to 64, {listing(names)}")
    return known[key]


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a short name.

    Raises:
        ConfigError: There is none.
    """
    known = benchmarks()
    if name not in known:
        raise ConfigError(f"--dataset {name}: unknown{suggestion(name, known)}; known: {listing(known)}")
    return known[name]


def _group(group: Mapping[str, Any], table: Mapping[str, Any]) -> list[Setting]:
    # With LoRA on the language model alone, the research code trains the Q-Former in full.
    alone = "llm" if group["qformer"] == "full" else "qformer" if group["llm"] == "frozen" else None
    words = group[alone or "qformer"]
    made = []
    for place, rank in enumerate(table["ranks"]):
        number = group["first"] + place
        run = {}
        for name in group["init_lr"]:
            epochs = table["max_epoch_exceptions"].get(name, {}).get(number, table["max_epoch"])
            run[name] = {"init_lr": group["init_lr"][name][place], "max_epoch": epochs}
        adapters = {name: _adapter(group[name], rank, table["lora_alpha"]) for name in ("qformer", "llm")}
        what = (group["base"], alone or "both", _WORDS[tuple(words)], rank)
        made.append(Setting(str(number), *what, adapters, _everywhere(run), published=tuple(run)))
    return made


def _adapter(words: str | Sequence[str], rank: int, alpha: int) -> str | dict[str, Any]:
    if isinstance(words, str):
        return words
    return {"peft_type": "LORA", "sublayers": list(words), "r": rank, "lora_alpha": alpha}


def _everywhere(run: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of all benchmarks, those without one of their own from the benchmark in their `settings_of`."""
    return {
        name: run[name] if name in run else _ours(run[str(benchmark.settings_of)], benchmark)
        for name, benchmark in benchmarks().items()
    }


def _ours(run: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    return {**run, "max_epoch": benchmark.max_epoch or run["max_epoch"]}


def _besides(name: str, llm: str, run: Mapping[str, Any], adapters: Mapping[str, Any], words: str = "") -> Setting:
    """A setting without a number, on one language model; nothing of it is published."""
    runs = {key: _ours(run, benchmark) for key, benchmark in benchmarks().items()}
    return Setting(f"{name}-{llm}", llm, name, words, None, adapters, runs)
