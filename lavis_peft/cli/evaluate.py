"""`lavis-peft evaluate`."""

import contextlib
import json
import sys

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("evaluate", cls=RunCommand)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def command(cfg_path: str, options: tuple[str, ...], as_json: bool) -> None:
    """Score a model on its test splits, as LAVIS's evaluate.py does."""
    from lavis_peft.cli.running import build_runner
    from lavis_peft.runners import distributed
    from lavis_peft.runners.logs import plain

    with contextlib.redirect_stdout(sys.stderr):
        try:
            runner = build_runner(cfg_path, options, training=False)
            metrics = plain(runner.evaluate(skip_reload=True) or {})
            main = distributed.is_main()
        finally:
            distributed.shutdown()
    if not main:
        return
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
        return
    for split, values in metrics.items():
        for key, value in values.items():
            click.echo(f"{split}\t{key}\t{value}")
