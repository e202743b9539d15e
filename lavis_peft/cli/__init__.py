"""The `lavis-peft` command: a group whose commands are imported only when they run."""

import importlib
import sys
from typing import Any

import click

from lavis_peft import __version__
from lavis_peft.errors import UserError

#: Each command: the module whose attribute `command` it is, and its line in `lavis-peft --help`.
COMMANDS = {
    "autoload": ("lavis_peft.cli.autoload", "Make a bare `python train.py` find the plugin, or undo it."),
    "bench": ("lavis_peft.cli.bench", "Measure training, ranking and generation beside other ways to do them."),
    "convert": ("lavis_peft.cli.convert", "Rewrite a run config of the research code in the plugin's form."),
    "convert-base": ("lavis_peft.cli.convert_base", "Convert base weights from Hugging Face's layout, or to it."),
    "combine": ("lavis_peft.cli.combine", "Make one adapter of several, chosen by a held-out score."),
    "demo": ("lavis_peft.cli.demo", "Tune a tiny InstructBLIP on easy-VQA and show what it gained."),
    "doctor": ("lavis_peft.cli.doctor", "Show what is installed, what was patched, and what is wrong."),
    "evaluate": ("lavis_peft.cli.evaluate", "Score a model on its test splits, as LAVIS's evaluate.py does."),
    "experiments": ("lavis_peft.cli.experiments", "Show, run and tabulate the paper's experiments."),
    "export": ("lavis_peft.cli.export", "Write the adapters of a checkpoint in peft's own layout."),
    "features": ("lavis_peft.cli.features", "Fill and look after a cache of vision features."),
    "import": ("lavis_peft.cli.import_", "Make a checkpoint of an adapter in peft's layout."),
    "inspect": ("lavis_peft.cli.inspect", "Count what a run config would train, without loading weights."),
    "merge": ("lavis_peft.cli.merge", "Put the adapters of a checkpoint into the base weights."),
    "prepare": ("lavis_peft.cli.prepare", "Make a benchmark's official download ready for training."),
    "predict": ("lavis_peft.cli.predict", "Answer questions about pictures with a tuned or merged model."),
    "report": ("lavis_peft.cli.report", "Show where AdaLoRA put its rank, of one run or several."),
    "train": ("lavis_peft.cli.train", "Train by a run config, as LAVIS's train.py does."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and help line, and imports one only to run it.

    A user's mistake in any command ends in ``Error: …`` and exit code 2, an interrupt in 130.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; imports its module."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name][0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' help lines, from the table instead of from their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a near miss named."""
        from lavis_peft.checks import suggestion

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"No such command '{args[0]}'{suggestion(args[0], COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; the one place where errors become messages and exit codes."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            sys.exit(code if isinstance(code, int) else 0)
        except UserError as error:
            _end_with(error, error.exit_code, f"{error.heading}: {error}")
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort) as interrupt:
            _end_with(interrupt, 130, "Interrupted.")


def _end_with(error: BaseException, code: int, text: str) -> None:
    from lavis_peft.runners import peers

    peers.end_with(error, code, lambda: click.echo(text, err=True))
    sys.exit(code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lavis-peft")
def main() -> None:
    """Parameter-efficient tuning of InstructBLIP in LAVIS."""
