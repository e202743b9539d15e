"""`lavis-peft train`."""

import json

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.command("train", cls=RunCommand)
@run_options
@click.option(
    "--resume",
    is_flag=False,
    flag_value="auto",
    metavar="[auto|CHECKPOINT]",
    help="Go on with the newest run under run.output_dir, or begin one (auto, also without a word); or go on from a "
    "checkpoint, in a new folder. The same as run.resume_ckpt_path.",
)
@click.option(
    "--allow-config-change",
    "allowed",
    multiple=True,
    metavar="KEY",
    help="Go on although this key, or a key of this section, isn't what the run began with; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print where the run is, and its test metrics, as JSON.")
def command(
    cfg_path: str, options: tuple[str, ...], resume: str | None, allowed: tuple[str, ...], as_json: bool
) -> None:
    """Train by a run config, as LAVIS's train.py does.

    A run that gets SIGTERM, SIGINT or SIGUSR1 finishes its step, saves, and ends with exit code 75; the same command
    with --resume goes on with it.
    """
    from lavis_peft.cli.running import run, show

    given = list(options)
    if resume is not None:
        given.append(f"run.resume_ckpt_path={json.dumps(resume)}")
    if allowed:
        given.append(f"run.allow_config_change={json.dumps(allowed)}")
    show(run(cfg_path, given, training=True), as_json)
