"""Flickr30k captions (Young et al. 2014) in the splits of Karpathy and Fei-Fei 2015."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.prepare.benchmark import SPLITS, Benchmark, Extract
from lavis_peft.prepare.source import Unusable, Wanted, convert, locate, mapping, read_all, text, texts

_CAPTIONS = 5
_NAME = "dataset_flickr30k.json"
_BLANK = "a caption is blank; it was left out"
_FEWER = f"other than {_CAPTIONS} captions"
#: What the research code's text processor drops, from training captions too.
_DROPPED = str.maketrans("", "", "!*#;")


def read(source: Path) -> Extract:
    """The pictures with their captions.

    Args:
        source: The folder with Karpathy's JSON and the pictures' folder.

    Raises:
        DataError: Something is missing, or a JSON file can't be used.
    """
    paths = locate(
        source,
        {
            "json": Wanted(
                tuple(f"{start}{_NAME}" for start in ("", "karpathy/", "caption_datasets/")),
                "Karpathy's caption_datasets.zip",
            ),
            "images": Wanted(
                ("flickr30k-images", "flickr30k_images", "images"),
                "Flickr30k's flickr30k-images.tar.gz, by the form of shannon.cs.illinois.edu/DenotationGraph",
                True,
            ),
        },
    )
    content = read_all({"json": (paths["json"], dict)})["json"]
    images = content.get("images")
    extract = Extract()
    if not isinstance(images, list):
        extract.problems["train"].append(f"{paths['json']}: 'images' must be a list, found {str(images)[:60]!r}")
        return extract
    folder = paths["images"].relative_to(source)
    numbered = [(f"{_NAME}: image {number}", entry) for number, entry in enumerate(images, start=1)]
    for split in SPLITS:

        def make(entry: Any, split: str = split) -> dict[str, Any]:
            return _record(mapping(entry), folder, split, extract)

        # An entry of no known split counts to the first, where it is reported.
        items = [(name, entry) for name, entry in numbered if _split(entry) == split]
        extract.records[split], extract.problems[split] = convert(items, make, f"Flickr30k {split}")
    return extract


def _split(entry: Any) -> str:
    found = entry.get("split") if isinstance(entry, Mapping) else None
    return found if found in SPLITS else SPLITS[0]


def _record(entry: Mapping[str, Any], folder: Path, split: str, extract: Extract) -> dict[str, Any]:
    name = text(entry, "filename")
    if entry.get("split") not in SPLITS:
        raise Unusable(f"'split' must be train, val or test, found {entry.get('split')!r}")
    captions = texts(entry, "sentences", "raw")
    if split == "train":
        captions = [caption.translate(_DROPPED).strip() for caption in captions]
    kept = [caption for caption in captions if caption.strip()]
    if not kept:
        raise Unusable(f"no caption among {captions!r}")
    if len(kept) < len(captions):
        extract.remark(_BLANK, name)
    elif len(captions) != _CAPTIONS:
        extract.remark(_FEWER, name)
    return {"image": (folder / name).as_posix(), "answer": kept, "question_id": Path(name).stem}


#: Karpathy's splits: 31,014 of the 31,783 pictures.
FLICKR30K = Benchmark("flickr30k", "Flickr30k", "pictures", {"train": 29000, "val": 1014, "test": 1000}, read)
