"""`lavis-peft evaluate`."""

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("evaluate", cls=RunCommand)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print where the predictions are, and the metrics, as JSON.")
def command(cfg_path: str, options: tuple[str, ...], as_json: bool) -> None:
    """Score a model on its test splits, as LAVIS's evaluate.py does."""
    from lavis_peft.cli.running import run, show

    show(run(cfg_path, options, training=False), as_json)
