"""`lavis-peft convert`: a run config of the research code in the plugin's form."""

from pathlib import Path

import click


@click.command("convert")
@click.argument("old", metavar="OLD.yaml")
@click.option("--output", metavar="NEW.yaml", help="File to write; must not exist yet. Default: standard output.")
@click.option("--data", metavar="DIR", help="Folder that `lavis-peft prepare` wrote: take the dataset's paths from it.")
def command(old: str, output: str | None, data: str | None) -> None:
    """Rewrite a run config of the research code of Kim et al. 2024 (github.com/AttentionX/InstructBLIP_PEFT).

    Its configs also run as they are, in every command that takes --cfg-path: this one shows what they become. The new
    file trains the same parameters; comments at its top say what each key became, and which had no effect there. A key
    that can't be honoured is an error.
    """
    from lavis_peft.adapters.checkpoint import atomic_file
    from lavis_peft.errors import ConfigError
    from lavis_peft.research.convert import converted

    text = converted(old, data)
    if output is None:
        click.echo(text, nl=False)
        return
    target = Path(output).expanduser()
    if target.exists():
        raise ConfigError(f"--output {output}: exists already; give a new file")
    try:
        with atomic_file(target) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"--output {output}: can't be written to ({error.strerror or error})") from None
    click.echo(str(target))
