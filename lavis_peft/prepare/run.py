"""Preparing a benchmark: read its download, check the pictures, write annotation files and a dataset YAML."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from lavis_peft.checks import first_line, listing, unwritable
from lavis_peft.datasets.records import summary
from lavis_peft.errors import ConfigError, DataError, DiskFull
from lavis_peft.prepare.benchmark import SPLITS, Benchmark, Extract, questions
from lavis_peft.prepare.pictures import damaged

_YAML = "dataset.yaml"


def prepare(
    benchmark: Benchmark, source: Path, output: Path, drop_broken: bool = False, decode: bool = True
) -> dict[str, Any]:
    """Make a benchmark's download ready for training.

    Args:
        benchmark: One of `BENCHMARKS`.
        source: The folder of the official download.
        output: The folder for ``train.json``, ``val.json``, ``test.json`` and ``dataset.yaml``; what was there before
            is replaced only when all four are written.
        drop_broken: Leave out questions that can't be used, instead of refusing.
        decode: Whether to decode every picture; else each only has to be there.

    Returns:
        ``dataset``, ``output``, ``files``, ``counts`` (``found``, ``published`` and ``dropped`` of each split),
        ``images`` (``checked``, ``decoded``, ``missing``, ``damaged``), ``dropped`` (what and why) and ``warnings``.

    Raises:
        DataError: Files are missing, or questions can't be used and aren't to be dropped.
        ConfigError: The output can't be written.
    """
    source, output = source.expanduser().resolve(), output.expanduser().resolve()
    _check_output(output)
    extract = benchmark.read(source)
    unusable = list(dict.fromkeys(problem for split in SPLITS for problem in extract.problems[split]))
    # Decoding takes minutes, so what a glance shows to be the wrong files is said before it.
    _refuse(unusable, drop_broken, f"{questions(len(unusable))} can't be used")
    names = [record["image"] for split in SPLITS for record in extract.records[split]]
    broken = damaged(source, names, decode)
    broken_lines = [f"{source / name}: {state}" for name, state in broken.items()]
    _refuse(broken_lines, drop_broken, f"{len(broken)} of {len(set(names)):,} images can't be used")
    records = _usable(extract, broken, source)
    counts = _counts(benchmark, extract, records)
    files = _write(benchmark, records, source, output)
    missing = sum(state == "missing" for state in broken.values())
    images = {"checked": len(set(names)), "decoded": decode, "missing": missing, "damaged": len(broken) - missing}
    return {
        "dataset": benchmark.dataset,
        "output": str(output),
        "files": files,
        "counts": counts,
        "images": images,
        "dropped": [*unusable, *broken_lines],
        "warnings": [*extract.remarked(), *_differences(benchmark, counts)],
    }


def _check_output(output: Path) -> None:
    """See that nothing is in the way, and that no download is overwritten: VizWiz's files have the same names.

    Raises:
        ConfigError: Names every file that is, or why the folder can't be written to.
    """
    if problem := unwritable(output):
        raise ConfigError(f"--output {output}: {problem}")
    paths = _paths(output)
    folders = [path.name for path in paths.values() if path.is_dir()]
    if folders:
        raise ConfigError(f"--output {output}: in the way of its files: the folder {listing(folders)}")
    strange = [path.name for path in paths.values() if path.exists()]
    if strange and not paths[_YAML].exists():
        raise ConfigError(
            f"--output {output}: has {listing(strange)} without the {_YAML} that prepare writes, so these may be "
            "files of a download; give another folder"
        )


def _paths(output: Path) -> dict[str, Path]:
    """The files that are written, by split, and the YAML by its name."""
    return {**{split: output / f"{split}.json" for split in SPLITS}, _YAML: output / _YAML}


def _refuse(problems: list[str], drop_broken: bool, what: str) -> None:
    if problems and not drop_broken:
        raise DataError(summary(problems, head=f"{what}; --drop-broken leaves them out:"))


def _usable(extract: Extract, broken: dict[str, str], source: Path) -> dict[str, list[dict[str, Any]]]:
    """The records whose pictures can be used.

    Raises:
        DataError: A split has none.
    """
    records = {
        split: [record for record in extract.records[split] if record["image"] not in broken] for split in SPLITS
    }
    empty = [split for split in SPLITS if not records[split]]
    if empty:
        raise DataError(f"--source {source}: no question that can be used in split {', '.join(empty)}")
    return records


def _counts(
    benchmark: Benchmark, extract: Extract, records: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, int]]:
    return {
        split: {
            "found": len(records[split]),
            "published": benchmark.published[split],
            "dropped": len(extract.records[split]) - len(records[split]) + len(extract.problems[split]),
        }
        for split in SPLITS
    }


def _differences(benchmark: Benchmark, counts: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{split}: {of['found']:,} {benchmark.counts}, published are {of['published']:,}"
        for split, of in counts.items()
        if of["found"] != of["published"]
    ]


def _write(benchmark: Benchmark, records: dict[str, list[dict[str, Any]]], source: Path, output: Path) -> list[str]:
    from lavis_peft.adapters.checkpoint import atomic_file  # imports torch

    paths = _paths(output)
    section = {
        "build_info": {
            "annotations": {split: {"storage": str(paths[split])} for split in SPLITS},
            "images": {"storage": str(source)},
        }
    }
    text = yaml.safe_dump({"datasets": {benchmark.dataset: section}}, sort_keys=False, allow_unicode=True)
    contents = {paths[_YAML]: f"# {benchmark.title}, prepared from {source}\n{text}"}
    contents |= {paths[split]: json.dumps(records[split], ensure_ascii=False, indent=1) for split in SPLITS}
    try:
        # All are written before the first takes its place; the YAML, entered first, takes its own last.
        with ExitStack() as whole:
            for path, content in contents.items():
                whole.enter_context(atomic_file(path)).write(content.encode())
    except DiskFull:
        raise  # no mistake in what was asked for
    except OSError as error:
        raise ConfigError(f"--output {output}: can't be written to ({first_line(error)})") from None
    return [str(path) for path in paths.values()]
