"""The `datasets.*` sections of a run config as typed, checked values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lavis_peft.checks import listing, unknown_keys
from lavis_peft.datasets.section import SectionReader
from lavis_peft.datasets.template import Template, parse_template
from lavis_peft.errors import ConfigError

SPLITS = ("train", "val", "test")
PROMPT_FIELDS = ("question", "context", "options", "choices")
TARGET_FIELDS = ("answer", "letter")
#: What becomes of several right answers in training.
TRAIN_ANSWERS = ("drawn", "each", "together")

#: Keys that LAVIS reads, not the dataset.
_LAVIS_KEYS = ("type", "data_type")


def _key(meaning: str, default: Any) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Annotations:
    """Where one split's annotations are: ``storage`` files, and LAVIS's ``url`` beside them (may be empty)."""

    storage: tuple[str, ...]
    url: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What every dataset of the plugin takes. Field names are the YAML's keys."""

    prompt: Template = field(metadata={"meaning": "the instruction; fields {question} {context} {options} {choices}"})
    target: Template = field(metadata={"meaning": "what is trained and ranked; fields {answer} {letter}"})
    vis_processor: Mapping[str, Any] = field(metadata={"meaning": "image processors, `train` and `eval`"})
    text_processor: Mapping[str, Any] = field(metadata={"meaning": "prompt processors, `train` and `eval`"})
    option_separator: str = _key(
        "what stands between the options in `{options}`; `\\n` in double quotes is a line break", " "
    )
    train_answers: str = _key(
        "of several right answers, training takes: `drawn`, one at random each epoch; `each`, every one as a sample of "
        "its own; `together`, all of them in the question's batch, which grows by as much",
        "drawn",
    )
    max_samples: Mapping[str, int] = field(
        default_factory=dict, metadata={"meaning": "keep at most so many questions of a split, drawn by `seed`"}
    )
    shuffle_images: bool = _key("a control: every question is asked about another question's picture", False)
    cache_images: bool = _key("keep decoded pictures in memory (3 bytes a pixel)", False)
    seed: int = _key("of the draws that choose the data: max_samples, shuffle_images, val_images", 42)


@dataclass(frozen=True, kw_only=True)
class InstructJsonSpec(DatasetSpec):
    """`instruct_json`: one's own data."""

    annotations: Mapping[str, Annotations] = field(
        metadata={"meaning": "build_info.annotations.{train,val,test}.storage: JSON or JSONL files"}
    )
    images: str | None = _key("build_info.images.storage: the image folder; default: the annotation file's", None)
    choices: tuple[str, ...] = _key("answer choices for records that bring none", ())


@dataclass(frozen=True, kw_only=True)
class EasyVqaSpec(DatasetSpec):
    """`easy_vqa`: the public easy-VQA set."""

    val_images: int = _key("training pictures, with all their questions, set apart as split `val`", 0)
    data_dir: str | None = _key("the set's data folder; default: the one in the package easy-vqa", None)


def _template(reader: SectionReader, key: str, fields: tuple[str, ...], where: str) -> Template:
    text = reader.text(key)
    if text is None:
        if not any(problem.startswith(f"{where}.{key}:") for problem in reader.problems):
            reader.problems.append(f"{where}.{key}: missing; a text with fields {listing(fields)} in braces")
        return Template("", ())
    try:
        return parse_template(text, fields, f"{where}.{key}")
    except ConfigError as error:
        reader.problems.extend(error.problems)
        return Template(text, ())


def _max_samples(reader: SectionReader, splits: tuple[str, ...], where: str) -> dict[str, int]:
    limits = reader.mapping("max_samples")
    where = f"{where}.max_samples"
    reader.problems.extend(unknown_keys(limits, splits, where))
    inner = SectionReader(limits, where, reader.problems)
    return {split: inner.count(split, 1, least=1) for split in limits if split in splits}


def _common(reader: SectionReader, splits: tuple[str, ...], where: str) -> dict[str, Any]:
    target = _template(reader, "target", TARGET_FIELDS, where)
    if target.parts and not target.fields:
        reader.problems.append(f"{where}.target: {target.text!r} uses neither {{answer}} nor {{letter}}")
    return {
        "prompt": _template(reader, "prompt", PROMPT_FIELDS, where),
        "target": target,
        "vis_processor": reader.mapping("vis_processor"),
        "text_processor": reader.mapping("text_processor"),
        "option_separator": reader.text("option_separator", " ", blank=True),
        "train_answers": reader.choice("train_answers", TRAIN_ANSWERS),
        "max_samples": _max_samples(reader, splits, where),
        "shuffle_images": reader.flag("shuffle_images", False),
        "cache_images": reader.flag("cache_images", False),
        "seed": reader.count("seed", 42),
    }


def _annotations(build_info: SectionReader, where: str) -> dict[str, Annotations]:
    splits = build_info.mapping("annotations")
    where = f"{where}.annotations"
    problems = build_info.problems
    problems.extend(unknown_keys(splits, SPLITS, where))
    if not splits:
        problems.append(f"{where}: missing; give at least one of {listing(SPLITS)}, each with `storage`")
    reader = SectionReader(splits, where, problems)
    found = {}
    for split in (split for split in SPLITS if split in splits):
        # LAVIS's YAMLs may carry md5 sums beside the url.
        problems.extend(unknown_keys(reader.mapping(split), ("storage", "url", "md5"), f"{where}.{split}"))
        files = reader.inner(split)
        before = len(problems)
        found[split] = Annotations(files.texts("storage"), files.texts("url"))
        if not found[split].storage and len(problems) == before:
            problems.append(f"{where}.{split}.storage: missing; the path of a JSON or JSONL file")
    return found


def parse_instruct_json(section: Mapping[str, Any], where: str = "datasets.instruct_json") -> InstructJsonSpec:
    """Check an `instruct_json` section and make it a value; nothing is read.

    Args:
        section: The section as plain containers, its default YAML merged in.
        where: Its dotted name in messages.

    Raises:
        ConfigError: With every problem found.
    """
    allowed = (*_LAVIS_KEYS, "build_info", *InstructJsonSpec.__dataclass_fields__)
    problems = unknown_keys(section, [key for key in allowed if key not in ("annotations", "images")], where)
    reader = SectionReader(section, where, problems)
    problems += unknown_keys(reader.mapping("build_info"), ("annotations", "images"), f"{where}.build_info")
    build_info = reader.inner("build_info")
    annotations = _annotations(build_info, f"{where}.build_info")
    images = build_info.inner("images")
    problems += unknown_keys(build_info.mapping("images"), ("storage",), f"{where}.build_info.images")
    choices = reader.texts("choices")
    if len(set(choices)) < len(choices):
        problems.append(f"{where}.choices: a choice is listed twice: {list(choices)}")
    values = _common(reader, tuple(annotations), where)
    storage = images.text("storage")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return InstructJsonSpec(annotations=annotations, images=storage, choices=choices, **values)


def parse_easy_vqa(section: Mapping[str, Any], where: str = "datasets.easy_vqa") -> EasyVqaSpec:
    """Check an `easy_vqa` section and make it a value; nothing is read.

    Args:
        section: The section as plain containers, its default YAML merged in.
        where: Its dotted name in messages.

    Raises:
        ConfigError: With every problem found.
    """
    problems = unknown_keys(section, (*_LAVIS_KEYS, *EasyVqaSpec.__dataclass_fields__), where)
    reader = SectionReader(section, where, problems)
    val_images = reader.count("val_images", 0)
    splits = SPLITS if val_images else ("train", "test")
    values = _common(reader, splits, where)
    data_dir = reader.text("data_dir")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return EasyVqaSpec(val_images=val_images, data_dir=data_dir, **values)
