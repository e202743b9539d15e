"""`lavis-peft prepare`: a benchmark's official download as annotation files and a dataset YAML."""

import json
from pathlib import Path
from typing import Any

import click

NAMES = ("scienceqa", "iconqa", "vizwiz", "flickr30k")


@click.command("prepare")
@click.argument("name", type=click.Choice(NAMES), metavar="|".join(NAMES))
@click.option("--source", required=True, metavar="DIR", help="Folder of the official download, unpacked.")
@click.option("--output", required=True, metavar="DIR", help="Folder for the annotation files and dataset.yaml.")
@click.option(
    "--drop-broken", is_flag=True, help="Leave out questions and images that can't be used, and say how many."
)
@click.option("--skip-image-check", is_flag=True, help="Only see that every image is there; don't decode it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(name: str, source: str, output: str, drop_broken: bool, skip_image_check: bool, as_json: bool) -> None:
    """Make a benchmark's official download ready for training.

    Checks that everything is there, counts the questions against the published numbers, decodes every image, and
    writes train.json, val.json, test.json and dataset.yaml, whose section `datasets` goes into a run config. Images
    stay where they are. Nothing is downloaded, and nothing is written while something is wrong.

    What DIR of --source must hold:

    \b
    scienceqa  problems.json, pid_splits.json (github.com/lupantech/ScienceQA,
               data/scienceqa); images/train, images/val, images/test, or
               these three at the top. Questions with an image only.
    iconqa     iconqa_data.zip (iconqa.github.io), unpacked: iconqa/train,
               val, test with choose_txt in each. With pid2skills.json or
               problems.json beside it, skills and grades are scored apart.
    vizwiz     Annotations.zip, train.zip, val.zip of VizWiz-VQA
               (vizwiz.org), unpacked: Annotations/train.json, val.json and
               the folders train, val.
    flickr30k  dataset_flickr30k.json (Karpathy's caption_datasets.zip), at
               the top or in karpathy/; flickr30k-images.

    VizWiz's official test answers aren't public. As in the research code, its validation split is scored: it is
    written as val and as test, so a score on test is of the split that also chose the epoch.
    """
    from lavis_peft.prepare import BENCHMARKS, prepare

    benchmark = BENCHMARKS[name]
    result = prepare(benchmark, Path(source), Path(output), drop_broken, decode=not skip_image_check)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    _show(result, benchmark.counts)


def _show(result: dict[str, Any], counted: str) -> None:
    for split, of in result["counts"].items():
        dropped = f", {of['dropped']:,} left out" if of["dropped"] else ""
        click.echo(f"{split}: {of['found']:,} {counted} (published: {of['published']:,}){dropped}")
    images = result["images"]
    how = "decoded" if images["decoded"] else "there (not decoded)"
    click.echo(f"images: {images['checked'] - images['missing'] - images['damaged']:,} of {images['checked']:,} {how}")
    for line in result["dropped"][:10]:
        click.echo(f"left out: {line}")
    if len(result["dropped"]) > 10:
        click.echo(f"left out: … and {len(result['dropped']) - 10} more")
    for line in result["warnings"]:
        click.echo(f"Warning: {line}", err=True)
    for path in result["files"]:
        click.echo(f"  {path}")
