"""From a Hugging Face InstructBLIP directory to the files that a `model` section names."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavis_peft.checks import listing
from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.hf.config import Sizes, language_config, model_section, read_hf_config
from lavis_peft.hf.files import Weights, open_weights
from lavis_peft.hf.tensors import EMBEDDINGS, Recipe, carried_out, language_recipes, recipes_to_lavis
from lavis_peft.hf.tokens import QFORMER, copy_tokenizer, read_json, write_json
from lavis_peft.hf.writing import SafetensorsFile, ShardWriter

PRETRAINED, VIT, LLM = "qformer.safetensors", "vit.safetensors", "llm"
_LANGUAGE = "language_model."
_VISION = "visual_encoder."


def convert(folder: Path, output: Path) -> Sizes:
    """Write an InstructBLIP of transformers as LAVIS's parts, tensor by tensor and bit for bit.

    Args:
        folder: What ``InstructBlipForConditionalGeneration.save_pretrained`` wrote, or a snapshot of the hub's.
        output: Where to write.

    Returns:
        The model's sizes.

    Raises:
        ConfigError: It isn't an InstructBLIP that LAVIS's classes can compute.
        CheckpointError: There are no weights, or some have no place in LAVIS's model.
    """
    sizes = _sizes(folder)
    weights = open_weights(folder)
    language = weights.below(_LANGUAGE)
    others = Weights({key: entry for key, entry in weights.entries.items() if not key.startswith(_LANGUAGE)})
    recipes = recipes_to_lavis(others, sizes.family)
    if not recipes or not len(language):
        raise CheckpointError(f"{folder}: has no language model, or nothing else")
    with tqdm(total=len(recipes) + len(language), unit="tensor", disable=None) as bar:
        vision = [each for each in recipes if each.target.startswith(_VISION)]
        _write_file([each for each in recipes if each not in vision], weights, output / PRETRAINED, bar)
        named = [replace(each, target=each.target.removeprefix(_VISION)) for each in vision]
        _write_file(named, weights, output / VIT, bar)
        _write_language_model(sizes, language, folder, output / LLM, bar)
    if not copy_tokenizer(folder / QFORMER, output / QFORMER):
        raise ConfigError(f"{folder / QFORMER}: no tokenizer of the Q-Former there")
    return sizes


def section_of(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """The `model` section that loads what `convert` wrote.

    Args:
        sizes: What it returned.
        folder: Where the files are, or will be for good.
    """
    places = {"pretrained": PRETRAINED, "vit": VIT, "llm": LLM, "qformer_tokenizer": QFORMER}
    return model_section(sizes, {name: str(folder / place) for name, place in places.items()})


def _sizes(folder: Path) -> Sizes:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: no config.json there; give a Hugging Face InstructBLIP directory")
    return read_hf_config(read_json(path), str(path))


def _write_file(recipes: Iterable[Recipe], weights: Weights, path: Path, bar: tqdm) -> None:
    file = SafetensorsFile(path)
    # By size of an element, so that each begins where readers can map it.
    small = []
    for name, tensor in carried_out(recipes, weights.read):
        bar.update()
        if file.takes(name, tensor):
            file.add(name, tensor)
        else:
            small.append((name, tensor))
    for name, tensor in sorted(small, key=lambda item: -item[1].element_size()):
        if not file.takes(name, tensor):
            raise CheckpointError(f"{name}: tensors of odd sizes in several precisions don't go into one file")
        file.add(name, tensor)
    file.close()


def _write_language_model(sizes: Sizes, weights: Weights, source: Path, folder: Path, bar: tqdm) -> None:
    folder.mkdir()
    embedding = next((name for name in EMBEDDINGS if name in weights), None)
    if embedding is None:
        raise CheckpointError(f"{source}: its language model has none of {listing(EMBEDDINGS)}")
    rows = weights.shape(embedding)[0]
    if sizes.image_token == rows - 1:
        rows -= 1  # there for <image> alone, which LAVIS's models don't have
    writer = ShardWriter(folder)
    for name, tensor in carried_out(language_recipes(list(weights), rows), weights.read):
        bar.update()
        writer.add(name, tensor)
    writer.close()
    write_json(folder / "config.json", language_config(sizes.text, "lm_head.weight" not in weights, rows))
    if not copy_tokenizer(source, folder, without_image=True):
        raise ConfigError(f"{source}: no tokenizer of the language model there")
