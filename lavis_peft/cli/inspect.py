"""`lavis-peft inspect`: what a run config trains, counted without a weight."""

import json
from typing import Any

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("inspect", cls=RunCommand)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(cfg_path: str, options: tuple[str, ...], as_json: bool) -> None:
    """Print trainable and total parameters of each part and sub-layer of the model in a run config.

    The model is built on torch's meta device: no weight is read, downloaded or allocated. The shapes of FLAN-T5-XL and
    XXL, Vicuna-7B and 13B, EVA ViT-g and the Q-Former are known to the plugin.

    A percentage is the part of that row's own parameters, adapters included, that trains.
    """
    import lavis_peft

    lavis_peft.register()
    counted = count_config(cfg_path, options)
    click.echo(json.dumps(counted, indent=2) if as_json else _table(counted))


def count_config(cfg_path: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Parameters of the model that a run config describes.

    Args:
        cfg_path: The run config.
        options: Overrides, ``key=value`` each.

    Returns:
        ``arch``, ``model_type``, ``trainable``, ``total``, ``percent``, ``without_gradient`` and ``parts``: the same
        numbers for each part and, in its ``sublayers``, for each sub-layer.

    Raises:
        ConfigError: Every problem of the config's model section.
    """
    from lavis.common.registry import registry

    from lavis_peft.adapters.count import count
    from lavis_peft.errors import ConfigError
    from lavis_peft.runners.config import model_problems, model_section
    from lavis_peft.runners.config_file import read_run_file

    config, _ = read_run_file(cfg_path, options)
    if problems := model_problems(config.model):
        raise ConfigError(problems, where=cfg_path)
    cls = registry.get_model_class(config.model.arch)
    if not hasattr(cls, "on_meta"):
        raise ConfigError(f"model.arch: {config.model.arch} is not a model of this plugin", where=cfg_path)
    try:
        model = cls.on_meta(model_section(config))
    except ConfigError as error:
        raise ConfigError(error.problems, where=cfg_path) from None
    counts = count(model.all_parts(), {"qformer": "qformer", "llm": model.family})
    return {"arch": config.model.arch, "model_type": config.model.model_type, **counts.as_dict()}


def _table(counted: dict[str, Any]) -> str:
    rows = [("part", "trainable", "total", "%")]
    for name, part in counted["parts"].items():
        rows.append((name, *_numbers(part)))
        rows += [(f"  {word}", *_numbers(sub)) for word, sub in part["sublayers"].items()]
    rows.append(("all", *_numbers(counted)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{counted['arch']}, {counted['model_type']}", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    if dead := counted["without_gradient"]:
        lines += ["", f"{dead:,} of the trainable parameters always have a zero gradient: the text branch of the"]
        lines += ["Q-Former's last layer, whose output nothing reads. They are counted because the paper counts them."]
    return "\n".join(lines)


def _numbers(counts: dict[str, Any]) -> tuple[str, str, str]:
    return f"{counts['trainable']:,}", f"{counts['total']:,}", f"{counts['percent']:.2f}"
