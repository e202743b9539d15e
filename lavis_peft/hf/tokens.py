"""The processor files beside InstructBLIP's weights: two tokenizers and the image processor."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.errors import CheckpointError

IMAGE = "<image>"
#: Where the Q-Former's tokenizer is, below the model's folder.
QFORMER = "qformer_tokenizer"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
# CLIP's, as LAVIS's image processors have them; red, green, blue.
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_BICUBIC = 3


def write_processor(
    folder: Path, tokenizer: Any, qformer_tokenizer: Any, *, image_size: int, queries: int, family: str
) -> int:
    """Write what ``InstructBlipProcessor`` reads, in the form that transformers 4.31 and all newer ones know.

    Args:
        folder: The model's folder.
        tokenizer: The language model's, with InstructBLIP's special tokens; it gets ``<image>``, which transformers
            from 4.46 on puts in the queries' places.
        qformer_tokenizer: The Q-Former's.
        image_size: Side of the square picture, pixels.
        queries: Query tokens.
        family: A LLaMA generates with its padding on the left.

    Returns:
        The id of ``<image>``.
    """
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(IMAGE, normalized=False, special=True)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    side = "left" if family == "llama" else "right"
    _edit_tokenizer(folder, padding_side=side, truncation_side="left")
    qformer_tokenizer.save_pretrained(folder / QFORMER)
    _edit_tokenizer(folder / QFORMER, truncation_side="left")
    image = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "InstructBlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
    write_json(folder / "preprocessor_config.json", image)
    write_json(
        folder / "processor_config.json", {"processor_class": "InstructBlipProcessor", "num_query_tokens": queries}
    )
    return int(tokenizer.convert_tokens_to_ids(IMAGE))


def copy_tokenizer(source: Path, target: Path, *, without_image: bool = False) -> list[str]:
    """Copy a tokenizer's files.

    Args:
        source: A folder with a tokenizer, and perhaps much else.
        target: Made if need be.
        without_image: Leave out an added ``<image>``: LAVIS's models have no such token, and read it as text.

    Returns:
        The files' names; none where there is no tokenizer.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = [name for name in _FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
        if without_image and name.endswith(".json") and name != "vocab.json":
            content = read_json(target / name)
            if name == "tokenizer.json":
                content["added_tokens"] = _without(content.get("added_tokens", []))
            else:
                content = _without(content)
            write_json(target / name, content)
    _edit_tokenizer(target)
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: It can't be read, or isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as Hugging Face's libraries do."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _edit_tokenizer(folder: Path, **values: object) -> None:
    """Set keys of a tokenizer's config, and make it one that older versions of transformers can read."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    # transformers 5 writes a class that older versions don't have, and how the tokenizer was loaded.
    own = {
        key: value for key, value in read_json(path).items() if key not in ("backend", "is_local", "local_files_only")
    }
    if own.get("tokenizer_class") == "TokenizersBackend":
        own["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, {**own, **values})


def _is_image(value: object) -> bool:
    return value == IMAGE or (isinstance(value, Mapping) and value.get("content") == IMAGE)


def _without(value: Any) -> Any:
    """A JSON value less everything that is the image token, however deep."""
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items() if key != IMAGE and not _is_image(item)}
    return [_without(item) for item in value if not _is_image(item)] if isinstance(value, list) else value
