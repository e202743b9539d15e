"""The command line of LAVIS's scripts: `--cfg-path X --options a.b=c d.e=f …`."""

from typing import Any

import click


class RunCommand(click.Command):
    """A command whose ``--options`` takes any number of values, as argparse's ``nargs="+"`` does; click has none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat ``--options`` before each of its values."""
        return super().parse_args(ctx, _spread(args))


def _spread(args: list[str]) -> list[str]:
    spread, inside = [], False
    for arg in args:
        if arg == "--options":
            inside = True
        elif inside and not _is_flag(arg):
            spread += ["--options", arg]
        else:
            inside = False
            spread.append(arg)
    return spread


def _is_flag(arg: str) -> bool:
    # As argparse has it: a negative number is a value.
    return arg.startswith("-") and not arg[1:2].isdigit() and arg[1:2] != "."


def run_options(function: Any) -> Any:
    """Add ``--cfg-path`` and ``--options`` to a command."""
    function = click.option(
        "--options",
        multiple=True,
        metavar="KEY=VALUE ...",
        help="Override settings of the run config, e.g. --options run.max_epoch=3 run.init_lr=1e-4.",
    )(function)
    return click.option("--cfg-path", required=True, metavar="YAML", help="The run config.")(function)
