"""`lavis-peft features`: fill and look after a cache of vision features."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from lavis_peft.cli.run_options import RunCommand, run_options


@click.group("features")
def command() -> None:
    """Fill and look after a cache of vision features (run.feature_cache).

    The vision encoder is frozen, so what it makes of a picture never changes. With run.feature_cache: DIR a run
    computes it once, keeps it in DIR and reads it from there in every epoch; later runs with the same encoder and
    image processor read it, too, and don't load the encoder at all.
    """


@command.command("fill", cls=RunCommand)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fill_command(cfg_path: str, options: tuple[str, ...], as_json: bool) -> None:
    """Compute what a run config's cache lacks, without training.

    Loads the vision encoder alone. It may be ended at any time and started again, run under torchrun, or run beside
    others on the same cache.
    """
    import contextlib

    from lavis_peft.cli.running import show

    with contextlib.redirect_stdout(sys.stderr):  # LAVIS prints its progress
        result = _fill(cfg_path, options)
    show(result, as_json)


def _fill(cfg_path: str, options: tuple[str, ...]) -> dict[str, Any]:
    from lavis_peft.cli.running import start
    from lavis_peft.errors import ConfigError

    cfg = start(cfg_path, options, training=True)
    from lavis import tasks
    from lavis.common.registry import registry

    from lavis_peft.cores import data_workers
    from lavis_peft.features.alone import VisionAlone
    from lavis_peft.features.encoder import Encoder
    from lavis_peft.features.filling import Filling
    from lavis_peft.features.prepare import prepare
    from lavis_peft.runners import distributed
    from lavis_peft.runners.config import run_spec
    from lavis_peft.runners.precision import take_precision

    spec = run_spec(cfg.run_cfg)
    if spec.feature_cache is None:
        raise ConfigError("run.feature_cache: names no folder; e.g. --options run.feature_cache=features")
    model_spec = registry.get_model_class(cfg.model_cfg.arch).parse_config(cfg.model_cfg)
    by_name = tasks.setup_task(cfg).build_datasets(cfg)
    trained = () if spec.evaluate else spec.train_splits
    splits = dict.fromkeys((*trained, *spec.valid_splits, *spec.test_splits))
    datasets = [found[split] for found in by_name.values() for split in splits if split in found]
    device = distributed.take_device(str(cfg.run_cfg.device))
    vision = VisionAlone(model_spec, device)
    take_precision(vision, spec.amp, spec.amp_dtype, device)
    encoder = Encoder(vision)
    if encoder.is_random:
        raise ConfigError("model.vit_model: names no weights, so that the vision encoder is another one in each run")
    workers = data_workers(spec.num_workers, device.startswith("cuda"))
    batch_size = spec.batch_size_eval or spec.batch_size_train or 16
    found = prepare(spec.feature_cache, datasets, Filling(encoder, batch_size, workers, spec.on_bad_sample == "skip"))
    main = distributed.is_main()
    distributed.shutdown()
    return {"folder": str(spec.feature_cache.folder), **found} if main else {}


@command.command("info")
@click.argument("folder", type=Path, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info_command(folder: Path, as_json: bool) -> None:
    """Show what a cache holds: a line for each encoder, image processor and precision."""
    from lavis_peft.features.room import size_text
    from lavis_peft.features.space import stores

    rows = [_row(header, store) for header, store in stores(folder)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['name']}  {row['features']} features, {size_text(row['bytes'])}, {row['dtype']}, "
            f"{row['processor']} at {row['image_size']}, weights {row['weights'][:12]}"
        )
    if not rows:
        click.echo(f"{folder}: holds no features")


@command.command("verify")
@click.argument("folder", type=Path, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify_command(folder: Path, as_json: bool) -> None:
    """Read every feature of a cache and compare it with its checksum; damaged ones are left to the next run to compute.

    Exit code 1 where any is damaged.
    """
    from tqdm import tqdm

    from lavis_peft.features.space import stores

    found = stores(folder)
    rows = []
    with tqdm(total=sum(len(store) for _, store in found), desc="features", disable=None, leave=False) as bar:
        for header, store in found:
            row, damaged = _row(header, store), 0
            for whole in store.verify():
                damaged += not whole
                bar.update()
            rows.append({**row, "damaged": damaged})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            click.echo(f"{row['name']}  {row['features']} features, {row['damaged']} damaged")
    if any(row["damaged"] for row in rows):
        sys.exit(1)


def _row(header: dict[str, Any], store: Any) -> dict[str, Any]:
    return {
        "name": store.folder.name,
        "features": len(store),
        "bytes": store.bytes_on_disk(),
        "dtype": header["dtype"],
        "shape": header["shape"],
        "processor": str(header["transform"]["settings"]["class"]).rpartition(".")[2],
        "image_size": header["encoder"]["image_size"],
        "weights": header["encoder"]["weights"],
    }
