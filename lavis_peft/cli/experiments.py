"""`lavis-peft experiments`: the paper's experiments by number."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.run_options import RunCommand
from lavis_peft.experiments.settings import PARTS, Setting, benchmark_of, benchmarks, setting_of, settings


@click.group("experiments")
def command() -> None:
    """Show, run and tabulate the paper's experiments.

    The 64 settings of Kim et al. 2024 by their numbers, full tuning of the Q-Former (full-t5, full-vicuna), and AdaLoRA
    (adalora-t5, adalora-vicuna), on ScienceQA, IconQA, VizWiz-VQA and Flickr30k.
    """


@command.command("list")
@click.option("--llm", type=click.Choice(["t5", "vicuna"]), help="Only those on this language model.")
@click.option("--part", type=click.Choice(PARTS), help="Only those that tune this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(llm: str | None, part: str | None, as_json: bool) -> None:
    """List the settings, with learning rates and epochs.

    A learning rate marked * is not published; `show` says whose choice it is.
    """
    chosen = [setting for setting in settings().values() if llm in (None, setting.llm) and part in (None, setting.part)]
    if as_json:
        click.echo(json.dumps([_as_dict(setting) for setting in chosen], indent=2))
        return
    rows = [("id", "setting", "r", *benchmarks())]
    for setting in chosen:
        rank = "" if setting.rank is None else str(setting.rank)
        rows.append((setting.key, setting.row, rank, *(_training(setting, name) for name in benchmarks())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _training(setting: Setting, name: str) -> str:
    mark = "" if name in setting.published else "*"
    return f"{setting.run[name]['init_lr']:.0e}{mark} × {setting.run[name]['max_epoch']}".replace("e-0", "e-")


def _as_dict(setting: Setting) -> dict[str, Any]:
    return {
        "id": setting.key,
        "setting": setting.row,
        "llm": setting.llm,
        "part": setting.part,
        "sublayers": setting.words,
        "r": setting.rank,
        "adapters": setting.adapters,
        "run": setting.run,
        "published": list(setting.published),
    }


def _experiment_options(required: bool) -> Any:
    """ID and the options that make a run config of it."""
    names = click.Choice(list(benchmarks()))

    def decorate(function: Any) -> Any:
        for option in (
            click.option("--options", multiple=True, metavar="KEY=VALUE ...", help="Override settings of the config."),
            click.option(
                "--tiny", is_flag=True, help="On the package's tiny model: tries out data and command, on a CPU."
            ),
            click.option("--output", metavar="DIR", help="Default: output/paper/DATASET/ID/seed_N."),
            click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Random seed."),
            click.option(
                "--data", type=Path, required=required, metavar="DIR", help="What `lavis-peft prepare` wrote."
            ),
            click.option("--dataset", type=names, required=required, default=None if required else "scienceqa"),
            click.argument("key", metavar="ID"),
        ):
            function = option(function)
        return function

    return decorate


@command.command("show", cls=RunCommand)
@_experiment_options(required=False)
def show_command(
    key: str, dataset: str, data: Path | None, seed: int, output: str | None, tiny: bool, options: tuple[str, ...]
) -> None:
    """Print the complete run config of an experiment, ready for `lavis-peft train --cfg-path`.

    Without --data, PREPARED_DIR stands where the prepared data's folder belongs. A comment says whether learning rate
    and epochs are published or our choice.
    """
    _, text = _composed(key, dataset, tiny, options, data=data, seed=seed, output=output)
    click.echo(text, nl=False)


@command.command("run", cls=RunCommand)
@_experiment_options(required=True)
@click.option("--dry-run", is_flag=True, help="Check the config and print it; read no data, don't train.")
@click.option("--json", "as_json", is_flag=True, help="Print where the run is, and its test metrics, as JSON.")
def run_command(
    key: str,
    dataset: str,
    data: Path,
    seed: int,
    output: str | None,
    tiny: bool,
    options: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train an experiment and score its test split.

    The run's config is written to run.yaml in the output folder, and the run goes into a folder beside it, named by its
    start time. Several processes share a run with `torchrun --nproc_per_node=N -m lavis_peft.cli experiments run …`;
    the batch is per process, so divide run.batch_size_train or run.accum_grad_iters by N.
    """
    from lavis_peft import register
    from lavis_peft.cli.running import run, show

    config, text = _composed(key, dataset, tiny, options, data=data, seed=seed, output=output)
    register()
    from lavis_peft.runners.config import check_config

    check_config(config, where=f"experiment {key}")
    if dry_run:
        click.echo(text, nl=False)
        return
    _mind_the_batch(config.run)
    path = Path(config.run.output_dir).expanduser() / "run.yaml"
    # Each of several processes writes the same, and a renaming never shows another one half of it.
    _write(text, path)
    show(run(str(path), (), training=True), as_json)


def _mind_the_batch(section: Any) -> None:
    """Say so where several processes make a larger batch than the config's own."""
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if processes > 1 and os.environ.get("RANK", "0") == "0":
        batch = section.batch_size_train * section.get("accum_grad_iters", 1)
        click.echo(
            f"warning: {processes} processes of {batch} samples each make batches of {processes * batch}", err=True
        )


def _composed(key: str, dataset: str, tiny: bool, options: tuple[str, ...], **given: Any) -> tuple[Any, str]:
    """An experiment's config, and its text with a head that says what it is."""
    from lavis_peft.experiments.compose import as_yaml, compose, tiny_options

    setting, benchmark = setting_of(key), benchmark_of(dataset)
    options = (*tiny_options(benchmark), *options) if tiny else options
    config = compose(setting, benchmark, options=options, **given)
    return config, as_yaml(config, setting, benchmark, options)


def _write(text: str, path: Path) -> None:
    from lavis_peft.adapters.checkpoint import atomic_file
    from lavis_peft.checks import first_line
    from lavis_peft.errors import ConfigError

    try:
        with atomic_file(path.expanduser()) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror or first_line(error)})") from None


@command.command("counts")
@click.option("--output", type=Path, metavar="FILE.md", help="Write the document there instead of printing it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def counts_command(output: Path | None, as_json: bool) -> None:
    """Count exactly what each of the 64 settings trains, at real sizes, without weights."""
    from tqdm import tqdm

    import lavis_peft

    lavis_peft.register()
    from lavis_peft.experiments.counts import count_settings
    from lavis_peft.experiments.counts_text import document

    numbered = [setting for setting in settings().values() if setting.rank is not None]
    counts = count_settings(tqdm(numbered, desc="settings", disable=None, leave=False))
    if output is not None:
        _write(document(settings(), counts), output)
        click.echo(f"Written: {output}", err=True)
    if as_json:
        click.echo(json.dumps([counted.as_dict() for counted in counts], indent=2))
    elif output is None:
        click.echo(document(settings(), counts), nl=False)


@command.command("table")
@click.argument("results_dir", type=Path, metavar="RESULTS_DIR")
@click.option(
    "--output", type=Path, multiple=True, metavar="FILE", help="Write .md or .csv; may be given several times."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def table_command(results_dir: Path, output: tuple[Path, ...], as_json: bool) -> None:
    """Gather finished runs into the paper's table: mean ± standard deviation over seeds, with their number.

    Every run below RESULTS_DIR is looked at, however it was started: its config says which experiment it is. Runs that
    changed something of the published setting (model, data, batch, …) get tables of their own that say what. Runs that
    are unfinished, broken or none of the paper's are listed on standard error.
    """
    from lavis_peft.experiments.results import read_results
    from lavis_peft.experiments.tables import as_csv, as_markdown, cells

    writers = {".md": as_markdown, ".csv": as_csv}
    for path in output:
        if path.suffix not in writers:
            raise click.UsageError(f"--output {path}: must end in .md or .csv")
    runs, left_out = read_results(results_dir)
    for line in left_out:
        click.echo(f"left out: {line}", err=True)
    if not runs:
        click.echo(f"{results_dir}: no finished run of the paper's experiments", err=True)
        sys.exit(1)
    for path in output:
        _write(writers[path.suffix](runs), path)
        click.echo(f"Written: {path}", err=True)
    if as_json:
        click.echo(json.dumps(cells(runs), indent=2))
    elif not output:
        click.echo(as_markdown(runs), nl=False)
