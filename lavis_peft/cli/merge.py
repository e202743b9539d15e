"""`lavis-peft merge`: adapters into the base weights, checked before it says done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.output import check_difference, check_folder, tuned_section, whole_folder
from lavis_peft.cli.run_options import RunCommand, run_options

#: Parameters up to which two models are compared unasked: some gigabytes of memory, and a minute.
SMALL = 10**9
_ROUNDING = "; half precision's rounding may be all of it: --verify layers compares each layer by itself"

Compare = Callable[[Any], dict[str, float]]


@click.command("merge", cls=RunCommand)
@run_options
@click.option("--checkpoint", required=True, metavar="PTH", help="The checkpoint to merge, as a run writes it.")
@click.option("--output", required=True, metavar="DIR", help="Folder to write; must not exist yet, or be empty.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["lavis", "hf"]),
    default="lavis",
    show_default=True,
    help="LAVIS's plain key names, or a directory for transformers' InstructBlipForConditionalGeneration.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Precision of everything written; default: each weight's own, as it was held in training.",
)
@click.option(
    "--verify",
    type=click.Choice(["auto", "layers", "full"]),
    default="auto",
    show_default=True,
    help="Compare each merged layer, or the whole models besides; auto does the latter where both fit easily.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    cfg_path: str,
    options: tuple[str, ...],
    checkpoint: str,
    output: str,
    layout: str,
    dtype: str | None,
    verify: str,
    as_json: bool,
) -> None:
    """Fold a checkpoint's adapters into the base weights, tensor by tensor: a large model needn't fit into memory.

    With --format lavis the folder gets merged.pth (Q-Former, query tokens, ln_vision and projection under LAVIS's plain
    names, for LAVIS main's own classes too), llm/ in Hugging Face's format where the language model was tuned, and
    run.yaml, the run config that loads them with no adapter. With --format hf it is a directory that
    InstructBlipForConditionalGeneration and InstructBlipProcessor load by themselves.

    Every merged layer is compared with the unmerged one on random inputs. A model of up to a billion parameters (any
    size with --verify full) is loaded besides, once from the written files and once unmerged, and both must compute the
    same. Nothing appears in the folder before that.
    """
    result = merge(cfg_path, list(options), checkpoint, Path(output), dtype, layout=layout, verify=verify)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    click.echo(
        f"merged {result['layers']} adapted layers; a layer's output differs by {result['layer_difference']:.1e}"
    )
    if "difference" in result:
        click.echo(f"the whole models differ by {result['difference']:.2e} (allowed {result['tolerance']:.0e})")
    else:
        click.echo("the whole models weren't compared; --verify full does it")
    for name in result["files"]:
        click.echo(f"  {Path(result['output']) / name}")


def merge(
    cfg_path: str,
    options: list[str],
    checkpoint: str,
    output: Path,
    dtype: str | None = None,
    *,
    layout: str = "lavis",
    verify: str = "auto",
) -> dict[str, Any]:
    """Merge a checkpoint, verify it and write it.

    Args:
        cfg_path: The run config that the checkpoint was trained with.
        options: Overrides of it, ``key=value`` each.
        checkpoint: A runner's checkpoint, path or URL.
        output: The folder to write; appears only when the written model was checked.
        dtype: ``fp32``, ``bf16``, ``fp16``, or None for each weight's own.
        layout: ``lavis`` or ``hf``.
        verify: ``layers``, ``full``, or ``auto``.

    Returns:
        ``output``, ``files``, ``layers`` (how many were adapted), ``layer_difference``; where whole models were
        compared ``difference``, ``tolerance``, ``prefix_difference`` and ``prefix_tolerance`` besides.

    Raises:
        ConfigError: Bad config or output folder.
        CheckpointError: The checkpoint belongs to another model, can't be merged, or the merged model differs.
    """
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    output = check_folder(output)
    import lavis_peft

    lavis_peft.register()
    from lavis_peft.models.tuned import read_tuned

    cls, section = tuned_section(config, cfg_path, "merge")
    tuned = read_tuned(cls, section, checkpoint)
    with whole_folder(output) as partial:
        if layout == "hf":
            compare = _write_hf(tuned, partial, dtype)
        else:
            compare = _write_lavis(tuned, config, section, partial, output, dtype)
        result = {
            "output": str(output),
            "format": layout,
            "files": sorted(str(path.relative_to(partial)) for path in partial.iterdir()),
            "layers": tuned.merged,
            "layer_difference": tuned.difference,
        }
        if verify == "full" or (verify == "auto" and tuned.parameters <= SMALL):
            result |= compare(cls.from_config({**section, "load_finetuned": True, "finetuned": checkpoint}).eval())
    return result


def _write_lavis(
    tuned: Any, config: Any, section: dict[str, Any], partial: Path, output: Path, dtype: str | None
) -> Compare:
    from omegaconf import OmegaConf

    from lavis_peft.models.language import PRECISIONS
    from lavis_peft.models.merged import merged_section, write_merged

    keys = write_merged(tuned, partial, PRECISIONS[dtype] if dtype else None)
    run = OmegaConf.to_container(config)
    run["run"].pop("resume_ckpt_path", None)  # of the tuned model: it doesn't fit a model without adapters
    run["model"] = merged_section(section, keys, output, dtype)
    (partial / "run.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(run)))

    def compare(model: Any) -> dict[str, float]:
        again = type(model).from_config(merged_section(section, keys, partial, dtype)).eval()
        return check_difference("the merged model", model, again, dtype, _ROUNDING)

    return compare


def _write_hf(tuned: Any, partial: Path, dtype: str | None) -> Compare:
    from lavis_peft.models.hf_check import compare_hf
    from lavis_peft.models.hf_model import write_hf
    from lavis_peft.models.language import PRECISIONS

    write_hf(tuned, partial, PRECISIONS[dtype] if dtype else None)
    return lambda model: compare_hf(model, partial, dtype)
