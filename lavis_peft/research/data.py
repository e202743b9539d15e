"""The research code's `datasets` section: its four benchmarks, and where it looks for their files."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.checks import listing, suggestion
from lavis_peft.research.findings import Findings

SPLITS = ("train", "val", "test")

#: Its datasets that are other ones here.
DATASETS = {
    "scienceqa": "scienceqa_peft",
    "iconqa": "iconqa_peft",
    "vizwiz": "vizwiz_peft",
    "flickr30k_instruct": "flickr30k_peft",
}


def _files(annotations: str, images: str) -> dict[str, Any]:
    return {
        "annotations": {split: {"storage": annotations.format(split)} for split in SPLITS},
        "images": {split: {"storage": images.format(split)} for split in SPLITS},
    }


#: Where its default configs say that a dataset is.
DEFAULT_FILES = {
    "scienceqa": _files("/input/scienceqa/scienceqa_{}.json", "/input"),
    "iconqa": _files("/input/iconqa/annotations/{}.json", "/input/iconqa/{}/choose_txt"),
    "vizwiz": _files(
        "../../../input/disk-50gb/vizwiz/annotations/{}.json", "../../../input/disk-50gb/vizwiz/images/{}"
    ),
    "flickr30k_instruct": _files("/input/flickr30k/annotations/{}.json", "/input/flickr30k/images"),
}
#: How an image folder of one split ends where the records' image paths bring that part themselves.
_SPLIT_FOLDERS = {"iconqa": "/{}/choose_txt", "vizwiz": "/{}"}

_OLD_KEYS = ("train_samples_portion", "data_type", "type", "vis_processor", "text_processor", "build_info")
#: What the plugin's datasets read besides; they check the values.
OWN_KEYS = (
    *("prompt", "target", "option_separator", "train_answers", "max_samples", "shuffle_images", "cache_images"),
    *("seed", "choices"),
)


def translate_datasets(old: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    """The sections in the plugin's form; datasets that aren't the research code's stay as they are.

    Args:
        old: The `datasets` section.
        found: Gets what there is to say.
    """
    sections: dict[str, Any] = {}
    for name, section in old.items():
        if name in DATASETS and isinstance(section, Mapping):
            found.notes.append(f"datasets.{name}: is {DATASETS[name]}")
            sections[DATASETS[name]] = _translated(name, section, found)
        else:
            sections[name] = section
    return sections


def _translated(name: str, old: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    where, allowed = f"datasets.{name}", (*_OLD_KEYS, *OWN_KEYS)
    section = {key: value for key, value in old.items() if key in allowed and key not in _OLD_KEYS[:1]}
    found.problems += [
        f"{where}.{key}: unknown key{suggestion(key, allowed)}; allowed: {listing(allowed)}"
        for key in old
        if key not in allowed
    ]
    portion = old.get("train_samples_portion", "all")
    if isinstance(portion, int) and not isinstance(portion, bool) and portion > 0:
        limits = section.get("max_samples")
        section["max_samples"] = {**(limits if isinstance(limits, Mapping) else {}), "train": portion}
        found.notes.append(f"{where}.train_samples_portion: {portion} is max_samples.train")
    elif portion != "all":
        found.problems.append(f"{where}.train_samples_portion: found {portion!r}; give all, or a whole number above 0")
    given = old.get("build_info")
    if given is not None and not isinstance(given, Mapping):
        found.problems.append(f"{where}.build_info: must be a mapping, found {given!r}")
        return section
    if not given:
        found.notes.append(f"{where}.build_info: not set; its own default paths. `convert --data` puts others in")
    section["build_info"] = _build_info(name, given or {}, f"{where}.build_info", found)
    return section


def _build_info(name: str, given: Mapping[str, Any], where: str, found: Findings) -> dict[str, Any]:
    """Its form names an image folder for each split, the plugin's a single one."""
    images = given.get("images") or {}
    if isinstance(images, Mapping) and images.get("storage") and not any(split in images for split in SPLITS):
        return dict(given)  # the plugin's form, as `prepare` writes it
    default = DEFAULT_FILES[name]
    if not all(isinstance(given.get(key) or {}, Mapping) for key in default):
        found.problems.append(f"{where}: annotations and images must be mappings of splits, found {dict(given)!r}")
        return {}
    merged = {key: {**files, **(given.get(key) or {})} for key, files in default.items()}
    folders = {split: _folder(name, split, merged["images"][split]) for split in SPLITS}
    if None in folders.values() or len(set(folders.values())) > 1:
        ending = _SPLIT_FOLDERS.get(name)
        form = f"one folder and end in {ending.format('SPLIT')}" if ending else "the same folder"
        found.problems.append(f"{where}.images: the splits' storage must all name {form}; found {merged['images']!r}")
    rest = {key: value for key, value in given.items() if key not in default}
    return {**rest, "annotations": merged["annotations"], "images": {"storage": folders["train"]}}


def _folder(name: str, split: str, section: Any) -> str | None:
    storage = section.get("storage") if isinstance(section, Mapping) else None
    ending = _SPLIT_FOLDERS.get(name, "").format(split)
    if not isinstance(storage, str) or not storage.rstrip("/").endswith(ending):
        return None
    return storage.rstrip("/").removesuffix(ending) or "/"
