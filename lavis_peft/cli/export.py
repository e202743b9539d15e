"""`lavis-peft export`: adapters in peft's own layout, checked before it says done."""

import json
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.output import check_difference, check_folder, tuned_model, whole_folder
from lavis_peft.cli.run_options import RunCommand, run_options

#: The run config.
RUN = "run.yaml"


@click.command("export", cls=RunCommand)
@run_options
@click.option("--checkpoint", required=True, metavar="PTH", help="The checkpoint to export, as a run writes it.")
@click.option("--output", required=True, metavar="DIR", help="Folder to write; must not exist yet, or be empty.")
@click.option("--prune", is_flag=True, help="Leave out AdaLoRA's ranks that were taken away.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["peft", "peft-hf"]),
    default="peft",
    show_default=True,
    help="Names of LAVIS's Q-Former, or of transformers' InstructBLIP.",
)
@click.option(
    "--push-to-hub", "repo", metavar="OWNER/NAME", help="Upload the folder (but run.yaml) to the hub as well."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    cfg_path: str,
    options: tuple[str, ...],
    checkpoint: str,
    output: str,
    prune: bool,
    layout: str,
    repo: str | None,
    as_json: bool,
) -> None:
    """Write a checkpoint's adapters as peft does, one folder for each part.

    DIR/qformer and DIR/llm get adapter_config.json and adapter_model.safetensors; trained.safetensors holds what
    trained besides; README.md is a model card; run.yaml is the run config, for `lavis-peft predict --adapter DIR`.
    AdaLoRA becomes plain LoRA; with --prune, each layer keeps its own rank. With --format peft-hf,
    PeftModel.from_pretrained takes DIR/qformer on the `qformer` of transformers' InstructBLIP, and DIR/llm on its
    `language_model`; `lavis-peft import` reads both formats.

    Before the folder appears, what was written is put into a fresh base model, which must score as the tuned one does.
    """
    if repo is not None:
        from lavis_peft.hf.hub import check_upload, upload

        check_upload(repo, "--push-to-hub")  # before minutes of work
    result = export(cfg_path, list(options), checkpoint, Path(output), prune, layout)
    if repo is not None:
        # The run config has paths of this machine in it.
        result["url"] = upload(Path(result["output"]), repo, "--push-to-hub", [RUN])
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for part, numbers in result["parts"].items():
        click.echo(
            f"{part}: {numbers['layers']} layers, {numbers['ranks']} ranks, {numbers['parameters']:,} parameters"
        )
    click.echo(f"largest difference of a score: {result['difference']:.2e}")
    for name in result["files"]:
        click.echo(f"  {Path(result['output']) / name}")
    if "url" in result:
        click.echo(result["url"])


def export(
    cfg_path: str, options: list[str], checkpoint: str, output: Path, prune: bool = False, layout: str = "peft"
) -> dict[str, Any]:
    """Export a checkpoint's adapters, verify and write them.

    Args:
        cfg_path: The run config that the checkpoint was trained with.
        options: Overrides of it, ``key=value`` each.
        checkpoint: A runner's checkpoint, path or URL.
        output: The folder to write; appears only when its content was checked.
        prune: Leave out ranks that AdaLoRA took away.
        layout: ``peft``, or ``peft-hf`` for Hugging Face's names.

    Returns:
        ``output``, ``files``, ``parts`` (``layers``, ``ranks`` and ``parameters`` of each), ``difference`` and
        ``tolerance``.

    Raises:
        ConfigError: Bad config or output folder.
        CheckpointError: The checkpoint belongs to another model, or what was written gives other outputs.
    """
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    output = check_folder(output)
    import lavis_peft

    lavis_peft.register()
    model, section = tuned_model(config, cfg_path, checkpoint, "export")
    with whole_folder(output) as partial:
        parts = _write(model, partial, prune, layout)
        _write_texts(config, section, partial, parts, layout)
        read = _imported if layout == "peft-hf" else _rebuilt
        checked = check_difference("the exported adapter", model, read(model, section, partial))
        files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    return {
        "output": str(output),
        "files": files,
        "parts": parts,
        **checked,
    }


def _write(model: Any, folder: Path, prune: bool, layout: str) -> dict[str, dict[str, int]]:
    from lavis_peft.adapters.checkpoint import save_tensors
    from lavis_peft.adapters.export import TRAINED, exported, in_hf_names, write_adapter
    from lavis_peft.adapters.merge import besides_adapters
    from lavis_peft.hf.keys import to_hf

    parts = {}
    for part, module in model.adapter_parts().items():
        spec = getattr(model.adapters, part)
        if spec.mode != "adapter":
            continue
        config, tensors = exported(module, spec, prune)
        renamed = layout == "peft-hf" and part == "qformer"
        write_adapter(in_hf_names((config, tensors)) if renamed else (config, tensors), folder / part)
        parts[part] = {
            "layers": len(config["target_modules"]),
            "ranks": sum(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight")),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        }
    rest = {name: tensor.detach().cpu().contiguous() for name, tensor in besides_adapters(model).items()}
    if layout == "peft-hf":
        rest = {to_hf(name): tensor for name, tensor in rest.items()}
    if rest:
        save_tensors(rest, folder / TRAINED)
    return parts


def _write_texts(config: Any, section: dict[str, Any], folder: Path, parts: dict[str, Any], layout: str) -> None:
    from omegaconf import OmegaConf

    from lavis_peft.adapters.card import model_card
    from lavis_peft.adapters.export import TRAINED

    run = OmegaConf.to_container(config)
    run["run"].pop("resume_ckpt_path", None)  # the tuned model's own
    run["model"] = {key: value for key, value in section.items() if key not in ("finetuned", "load_finetuned")}
    (folder / RUN).write_text(OmegaConf.to_yaml(OmegaConf.create(run)), encoding="utf-8")
    rest = (folder / TRAINED).is_file()
    card = model_card(section, parts, layout == "peft-hf", rest, list(config.datasets))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _rebuilt(model: Any, section: dict[str, Any], folder: Path) -> Any:
    """A fresh base model with the written files in it."""
    from torch import nn

    from lavis_peft.adapters.checkpoint import read_checkpoint
    from lavis_peft.adapters.export import TRAINED, put_back

    dropped = ("adapters", "finetuned", "load_finetuned")
    plain = type(model).from_config({key: value for key, value in section.items() if key not in dropped})
    if (folder / TRAINED).is_file():
        nn.Module.load_state_dict(plain, read_checkpoint(folder / TRAINED), strict=False)
    for part, module in plain.adapter_parts().items():
        if (folder / part).is_dir():
            put_back(module, folder / part)
    return plain.eval()


def _imported(model: Any, section: dict[str, Any], folder: Path) -> Any:
    """A fresh base model with the written files in it, names translated back."""
    from lavis_peft.models.incoming import loaded, read_incoming

    return loaded(type(model), section, read_incoming(type(model), section, folder))
