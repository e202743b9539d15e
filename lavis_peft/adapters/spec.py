"""Adapter settings: from the YAML's `model.adapters` section to frozen values, with every check that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from lavis_peft.adapters import parsing
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.methods import config_class, for_peft
from lavis_peft.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig

Mode = Literal["adapter", "full", "frozen"]
TRAINABLE_EXTRAS = ("query_tokens", "projection", "ln_vision")


@dataclass(frozen=True)
class AdapterSpec:
    """How one part of the model is tuned.

    Args:
        mode: ``adapter``, ``full`` (every parameter trains) or ``frozen``.
        peft_type: peft's name of the method; None unless ``mode`` is ``adapter``.
        sublayers: Words of `adapters.sublayers`, in the table's order; empty where ``target_modules`` says it.
        target_modules: peft's own pattern of layer names, a regular expression or a tuple of name endings. Without it
            and without words, a method that trains norms takes all of the part's.
        options: Everything else, handed to peft's config class unchanged.
    """

    mode: Mode = "frozen"
    peft_type: str | None = field(
        default=None, metadata={"meaning": f"peft's name of the method: {', '.join(METHODS)}"}
    )
    sublayers: tuple[str, ...] = field(
        default=(), metadata={"meaning": "the sub-layers to adapt, in the paper's words (the table below)"}
    )
    target_modules: str | tuple[str, ...] | None = field(
        default=None,
        metadata={
            "meaning": "instead of `sublayers`: peft's own pattern of names, below `Qformer.bert` or the LLM; with "
            "neither, LN_TUNING takes every norm"
        },
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"meaning": "every other key goes to peft's config class unchanged: r, lora_alpha, use_dora, …"},
    )

    def as_section(self) -> str | dict[str, Any]:
        """The part as the YAML says it: a word, or a mapping of plain containers."""
        if self.mode != "adapter":
            return self.mode
        section: dict[str, Any] = {"peft_type": self.peft_type}
        if self.sublayers:
            section["sublayers"] = list(self.sublayers)
        elif self.target_modules is not None:
            patterns = self.target_modules
            section["target_modules"] = patterns if isinstance(patterns, str) else list(patterns)
        return {**section, **{key: plain(value) for key, value in self.options.items()}}


@dataclass(frozen=True)
class AdaptersSpec:
    """What of the model trains. A part that isn't named is frozen.

    Args:
        qformer: The Q-Former.
        llm: The language model.
        train: Which of `TRAINABLE_EXTRAS` train besides.
        budget: ``separate``: each part with AdaLoRA has its own budget; ``shared``: they compete for one.
        budget_unit: What the budget counts: ``rank``, or the ``parameters`` that a rank costs where it is.
    """

    qformer: AdapterSpec = field(
        default_factory=AdapterSpec, metadata={"meaning": "the Q-Former: an adapter (a mapping), `full` or `frozen`"}
    )
    llm: AdapterSpec = field(
        default_factory=AdapterSpec, metadata={"meaning": "the language model: an adapter, `full` or `frozen`"}
    )
    train: tuple[str, ...] = field(
        default=TRAINABLE_EXTRAS, metadata={"meaning": "what trains besides: any of these three, or []"}
    )
    budget: str = field(
        default="separate", metadata={"meaning": "with ADALORA on both parts: a budget each, or one `shared`"}
    )
    budget_unit: str = field(
        default="rank", metadata={"meaning": "what AdaLoRA's budget counts: `rank`, or `parameters`"}
    )

    def as_dict(self) -> dict[str, Any]:
        """The section as plain containers; `parse_adapters` makes the same value of it again."""
        section = {"qformer": self.qformer.as_section(), "llm": self.llm.as_section(), "train": list(self.train)}
        # Only where it says something: most models have no budget.
        for key in ("budget", "budget_unit"):
            if getattr(self, key) != getattr(AdaptersSpec, key):
                section[key] = getattr(self, key)
        return section


def parse_adapters(
    section: Mapping[str, Any] | None, *, llm_family: str, where: str = "model.adapters"
) -> AdaptersSpec:
    """Check an adapters section and make it a value. Nothing is loaded.

    Args:
        section: The section as plain containers; None where the YAML has none.
        llm_family: ``t5`` or ``llama``: whose words `llm.sublayers` may use.
        where: The section's name in messages.

    Returns:
        The spec; with no section, both parts frozen.

    Raises:
        ConfigError: With every problem found, each naming its full key.
    """
    if section is None:
        return AdaptersSpec()
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: found {section!r}; give a mapping with any of qformer, llm, train")
    families = {"qformer": "qformer", "llm": llm_family}
    problems = parsing.section_problems(section, [item.name for item in fields(AdaptersSpec)], where)
    parts: dict[str, dict[str, Any]] = {}
    for part, family in families.items():
        if part in section:
            parts[part], found = parsing.part(section[part], family, f"{where}.{part}")
            problems += found
    train, found = parsing.train(section.get("train", list(TRAINABLE_EXTRAS)), TRAINABLE_EXTRAS, f"{where}.train")
    problems += found
    # Compared only when each part is right: what is misspelt in one of them isn't a difference between them.
    problems += parsing.budget(section, parts, where) if not problems else []
    if problems:
        raise ConfigError(problems)
    pool = {key: section[key] for key in ("budget", "budget_unit") if key in section}
    tuned: dict[str, Any] = {part: AdapterSpec(**value) for part, value in parts.items()}
    return AdaptersSpec(**tuned, train=train, **pool)


def peft_config(spec: AdapterSpec, targets: str | Sequence[str], **overrides: object) -> "PeftConfig":
    """peft's own config object of an adapter.

    Args:
        spec: A spec whose mode is ``adapter``.
        targets: What goes into ``target_modules``: a regular expression or name endings.
        overrides: Options to set in place of the spec's own; None takes an option out.
    """
    options = {**{key: plain(value) for key, value in spec.options.items()}, **overrides}
    given = {key: value for key, value in options.items() if value is not None}
    return config_class(str(spec.peft_type))(
        target_modules=targets if isinstance(targets, str) else list(targets), **for_peft(str(spec.peft_type), given)
    )


def plain(value: object) -> object:
    """The value in dicts and lists of its own, so that neither peft nor a checkpoint shares it with the spec."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def documented_keys(where: str = "model.adapters") -> list[tuple[str, str, str, str]]:
    """The plugin's own keys, for the table in the README.

    Args:
        where: The section's name.

    Returns:
        Rows of key, type, default and meaning.
    """
    top = {
        "qformer": ("mapping or word", "frozen"),
        "llm": ("mapping or word", "frozen"),
        "train": ("list", "[" + ", ".join(TRAINABLE_EXTRAS) + "]"),
        "budget": ("word", "separate"),
        "budget_unit": ("word", "rank"),
    }
    part = {
        "peft_type": ("word", "required"),
        "sublayers": ("list", "required, or `target_modules`; LN_TUNING needs neither"),
        "target_modules": ("text or list", "none"),
        "options": ("peft's", "peft's"),
    }
    rows = [(f"{where}.{f.name}", *top[f.name], f.metadata["meaning"]) for f in fields(AdaptersSpec)]
    described = [f for f in fields(AdapterSpec) if "meaning" in f.metadata]
    names = {f.name: "…" if f.name == "options" else f.name for f in described}
    return rows + [
        (f"{where}.{{qformer,llm}}.{names[f.name]}", *part[f.name], f.metadata["meaning"]) for f in described
    ]
