"""`lavis-peft report`: where AdaLoRA put its rank, of one run or of several side by side."""

import json
from pathlib import Path

import click

_DEFAULT = "lavis-peft-report"


@click.command("report")
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR...")
@click.option(
    "--output", metavar="DIR", help=f"Folder to write to. Default: RUN_DIR/report; of several runs, ./{_DEFAULT}."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(run_dirs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Show where AdaLoRA put its rank.

    Of one run: each sub-layer's share of the budget, rank layer by layer, and files with every layer's rank and
    importance (ranks.json, .csv, .txt) and figures (PNG and SVG). Of several runs that adapt the same layers: their
    shares side by side (comparison.json, .csv, .txt and a figure). The figures need the extra `report`.

    RUN_DIR is a run's folder, <run.output_dir>/<job id>.
    """
    from lavis_peft.adapters.report import name_runs, write_comparison, write_report

    folders = [Path(folder).expanduser() for folder in run_dirs]
    target = Path(output).expanduser() if output else None
    if len(folders) == 1:
        content, text, *others = write_report(folders[0], target)
    else:
        content, text, *others = write_comparison(name_runs(folders), target or Path(_DEFAULT))
    if as_json:
        click.echo(json.dumps(json.loads(content.read_text()), indent=2))
        return
    click.echo(text.read_text())
    click.echo("Files:")
    for path in (content, text, *others):
        click.echo(f"  {path}")
