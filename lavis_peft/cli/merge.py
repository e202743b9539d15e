"""`lavis-peft merge`: adapters into the base weights, checked before it says done."""

import json
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.output import check_difference, check_folder, tuned_model, whole_folder
from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("merge", cls=RunCommand)
@run_options
@click.option("--checkpoint", required=True, metavar="PTH", help="The checkpoint to merge, as a run writes it.")
@click.option("--output", required=True, metavar="DIR", help="Folder to write; must not exist yet, or be empty.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Precision of the merged checkpoint; default: as it is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    cfg_path: str, options: tuple[str, ...], checkpoint: str, output: str, dtype: str | None, as_json: bool
) -> None:
    """Fold a checkpoint's adapters into the base weights.

    The folder gets merged.pth (Q-Former, query tokens, ln_vision and projection under LAVIS's plain names), llm/ in
    Hugging Face's format where the language model was tuned, and run.yaml, the run config that loads them with no
    adapter. Before it appears, the written model is loaded and must score sample inputs as the unmerged one does.
    """
    result = merge(cfg_path, list(options), checkpoint, Path(output), dtype)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    click.echo(f"merged {result['layers']} adapted layers; largest difference of a score: {result['difference']:.2e}")
    for name in result["files"]:
        click.echo(f"  {Path(result['output']) / name}")


def merge(cfg_path: str, options: list[str], checkpoint: str, output: Path, dtype: str | None = None) -> dict[str, Any]:
    """Merge a checkpoint, verify it and write it.

    Args:
        cfg_path: The run config that the checkpoint was trained with.
        options: Overrides of it, ``key=value`` each.
        checkpoint: A runner's checkpoint, path or URL.
        output: The folder to write; appears only when the written model was checked.
        dtype: ``fp32``, ``bf16``, ``fp16``, or None for each weight's own.

    Returns:
        ``output``, ``files``, ``layers`` (how many were adapted), ``difference`` and ``tolerance``.

    Raises:
        ConfigError: Bad config or output folder.
        CheckpointError: The checkpoint belongs to another model, can't be merged, or the merged model differs.
    """
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    output = check_folder(output)
    import lavis_peft

    lavis_peft.register()
    model, section = tuned_model(config, cfg_path, checkpoint, "merge")
    with whole_folder(output) as partial:
        return _write_checked(model, section, config, partial, output, dtype)


def _write_checked(
    model: Any, section: dict[str, Any], config: Any, partial: Path, output: Path, dtype: str | None
) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from lavis_peft.adapters.merge import adapted_layers
    from lavis_peft.models.language import PRECISIONS
    from lavis_peft.models.merged import merged_section, write_merged

    keys = write_merged(model, partial, PRECISIONS[dtype] if dtype else None)
    again = type(model).from_config(merged_section(section, keys, partial)).eval()
    checked = check_difference("the merged model", model, again, dtype)
    run = OmegaConf.to_container(config)
    run["run"].pop("resume_ckpt_path", None)  # of the tuned model: it doesn't fit a model without adapters
    run["model"] = merged_section(section, keys, output)
    (partial / "run.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(run)))
    return {
        "output": str(output),
        "files": sorted(str(path.relative_to(partial)) for path in partial.iterdir()),
        "layers": len(adapted_layers(model)),
        **checked,
    }
