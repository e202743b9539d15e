"""`lavis-peft convert-base`: an InstructBLIP of the Hugging Face hub in LAVIS's layout, and back."""

import json
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.output import check_folder, tuned_section, whole_folder
from lavis_peft.errors import ConfigError

#: The file with the `model` section.
FRAGMENT = "model.yaml"


@click.command("convert-base")
@click.argument("source", metavar="SOURCE")
@click.option("--output", required=True, metavar="DIR", help="Folder to write; must not exist yet, or be empty.")
@click.option(
    "--to",
    "layout",
    type=click.Choice(["lavis", "hf"]),
    default="lavis",
    show_default=True,
    help="The layout to write.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="With --to hf, the precision of everything written; default: each weight's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(source: str, output: str, layout: str, dtype: str | None, as_json: bool) -> None:
    """Convert InstructBLIP's base weights between transformers' layout and LAVIS's, tensor by tensor.

    SOURCE is a directory of transformers' InstructBlipForConditionalGeneration, or its name on the hub, e.g.
    Salesforce/instructblip-flan-t5-xl. DIR gets qformer.safetensors, vit.safetensors, llm/, qformer_tokenizer/ and
    model.yaml, the `model` section to paste into a run config.

    With --to hf, SOURCE is a YAML with a `model` section: model.yaml, or a whole run config. DIR gets what transformers
    loads by itself: config, weights, both tokenizers, image processor. A run's adapters don't go in; that is
    `lavis-peft merge --format hf`.
    """
    result = convert_base(source, Path(output), layout, dtype)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name in result["files"]:
        click.echo(f"{Path(result['output']) / name}")
    if layout == "lavis":
        click.echo(f"paste the section of {Path(result['output']) / FRAGMENT} into a run config")


def convert_base(source: str, output: Path, layout: str = "lavis", dtype: str | None = None) -> dict[str, Any]:
    """Convert base weights.

    Args:
        source: A Hugging Face directory, or a model's name on the hub; for ``hf``, a YAML file.
        output: The folder to write; appears only when whole.
        layout: ``lavis`` or ``hf``.
        dtype: ``fp32``, ``bf16``, ``fp16``, or None for each weight's own; for ``hf`` alone.

    Returns:
        ``output``, ``format`` and ``files``.

    Raises:
        ConfigError: Bad source or output.
        CheckpointError: Weights are missing, damaged or another model's.
    """
    output = check_folder(output)
    if layout == "lavis" and dtype:
        raise ConfigError("--dtype: is for --to hf; LAVIS's layout keeps each weight as it is")
    with whole_folder(output) as partial:
        if layout == "hf":
            _to_hf(source, partial, dtype)
        else:
            _to_lavis(source, partial, output)
        files = sorted(str(path.relative_to(partial)) for path in partial.iterdir())
    return {"output": str(output), "format": layout, "files": files}


def _to_lavis(source: str, partial: Path, output: Path) -> None:
    from lavis_peft import compat

    compat.apply()
    import yaml

    from lavis_peft.hf.convert import convert, section_of
    from lavis_peft.hf.hub import snapshot

    folder = Path(source).expanduser()
    # The form of a name on the hub; anything else that isn't there is a path that was mistyped.
    named = not folder.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))
    sizes = convert(snapshot(source, "SOURCE") if named else folder, partial)
    _check(section_of(sizes, partial), source)
    text = yaml.safe_dump({"model": section_of(sizes, output)}, sort_keys=False, allow_unicode=True)
    (partial / FRAGMENT).write_text(f"# What `lavis-peft convert-base {source}` wrote, for a run config.\n{text}")


def _check(section: dict[str, Any], source: str) -> None:
    """See that a model of this plugin has a place for every weight that was written, and lacks none.

    Raises:
        CheckpointError: It isn't so; keys and shapes are named.
    """
    import lavis_peft

    lavis_peft.register()
    from lavis.common.registry import registry

    from lavis_peft.errors import CheckpointError, MissingFeature
    from lavis_peft.models.sources import Sources

    try:
        sources = Sources(registry.get_model_class(section["arch"]).on_meta(section))
    except MissingFeature as error:
        click.echo(f"What was written wasn't compared with a model: {error}", err=True)
        return
    try:
        for read in (sources.qformer, sources.vision, sources.llm):
            read()
    except CheckpointError as error:
        folder, written = str(Path(section["pretrained"]).parent), f"what {source} holds"
        raise CheckpointError(f"{written}, as LAVIS names it: {str(error).replace(folder + '/', '')}") from error


def _to_hf(source: str, partial: Path, dtype: str | None) -> None:
    from lavis_peft.runners.config_file import load_yaml

    config = load_yaml(source)
    if "model" not in config:
        raise ConfigError("no `model` section; give a run config, or the model.yaml of convert-base", where=str(source))
    import lavis_peft

    lavis_peft.register()
    from lavis_peft.models.hf_model import write_hf
    from lavis_peft.models.language import PRECISIONS
    from lavis_peft.models.tuned import read_tuned

    cls, section = tuned_section(config, str(source), "")
    tuned = read_tuned(cls, section, None)
    write_hf(tuned, partial, PRECISIONS[dtype] if dtype else None)
