"""`lavis-peft train`."""

import contextlib
import sys

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("train", cls=RunCommand)
@run_options
def command(cfg_path: str, options: tuple[str, ...]) -> None:
    """Train by a run config, as LAVIS's train.py does."""
    from lavis_peft.cli.running import build_runner
    from lavis_peft.runners import distributed

    # LAVIS prints its progress; standard output is for results.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            build_runner(cfg_path, options, training=True).train()
        finally:
            distributed.shutdown()
