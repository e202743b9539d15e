"""`lavis-peft train`."""

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("train", cls=RunCommand)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print where the run is, and its test metrics, as JSON.")
def command(cfg_path: str, options: tuple[str, ...], as_json: bool) -> None:
    """Train by a run config, as LAVIS's train.py does."""
    from lavis_peft.cli.running import run, show

    show(run(cfg_path, options, training=True), as_json)
