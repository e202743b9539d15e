"""`lavis-peft import`: an adapter in peft's layout as a checkpoint of ours."""

import json
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("import", cls=RunCommand)
@run_options
@click.option("--adapter", required=True, metavar="DIR", help="A folder of peft's, or of `lavis-peft export`.")
@click.option("--output", required=True, metavar="PTH", help="Checkpoint to write; must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(cfg_path: str, options: tuple[str, ...], adapter: str, output: str, as_json: bool) -> None:
    """Make a checkpoint of an adapter that was trained elsewhere or exported.

    The adapter may be of LAVIS's Q-Former, of transformers' InstructBLIP (its Q-Former, its language model or the whole
    model), or of a language model alone; names are translated. The run config says which base model it belongs to; its
    adapters are replaced. Beside the checkpoint, a run config that uses it is written. No base weight is read.
    """
    result = import_adapter(cfg_path, list(options), adapter, output)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for part, settings in result["adapters"].items():
        click.echo(f"{part}: {settings['peft_type']}, {result['layers'][part]} layers")
    for path in result["files"]:
        click.echo(f"  {path}")


def import_adapter(cfg_path: str, options: list[str], adapter: str, output: str) -> dict[str, Any]:
    """Import an adapter and write it.

    Args:
        cfg_path: A run config of its base model.
        options: Overrides of it, ``key=value`` each.
        adapter: The folder.
        output: The checkpoint to write; a YAML of the same name goes beside it.

    Returns:
        ``files``; ``adapters``, the settings, and ``layers``, their number, of each part.

    Raises:
        ConfigError: Bad config or output, or settings that can't be kept.
        CheckpointError: The adapter can't be read, or is of another model.
    """
    from lavis_peft.cli.output import check_checkpoint_name, tuned_section
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    target = check_checkpoint_name(output)
    import lavis_peft

    lavis_peft.register()
    from omegaconf import OmegaConf

    from lavis_peft.adapters.merge import adapted_layers
    from lavis_peft.models.incoming import read_incoming, write_checkpoint

    cls, section = tuned_section(config, cfg_path, "")
    incoming = read_incoming(cls, section, Path(adapter).expanduser())
    run = OmegaConf.to_container(config, resolve=True)
    files = write_checkpoint(cls, section, incoming, target, run, {"imported": {"source": adapter}})
    model = cls.on_meta({**section, "adapters": incoming.adapters.as_dict()})
    parts = {part: module for part, module in model.adapter_parts().items() if adapted_layers(module)}
    return {
        "files": [str(path) for path in files],
        "adapters": {part: getattr(incoming.adapters, part).as_section() for part in parts},
        "layers": {part: len(adapted_layers(module)) for part, module in parts.items()},
    }
