"""Results as rows, and the rows as Markdown."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

_VERSIONS = ("torch", "transformers", "peft", "salesforce-lavis", "ammico-lavis")


@dataclass(frozen=True)
class Row:
    """One contender at one kind of work.

    Args:
        what: The work.
        who: The contender.
        seconds: Median of its times.
        samples_per_second: From the median.
        tokens_per_second: In training of prompts and targets, in generation of answers; None where tokens don't measure
            the work.
        held_bytes: Weights and the optimizer's state, as if they weren't shared with another contender.
        peak_bytes: Memory that the work takes besides.
        flops: Matrix arithmetic per second; None where it wasn't counted.
        utilisation: The same over the device's measured matrix product, 0 to 1.
        ratio: How many times longer than the plugin: median over the rounds, lower and upper quartile.
    """

    what: str
    who: str
    seconds: float
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    held_bytes: int | None = None
    peak_bytes: int | None = None
    flops: float | None = None
    utilisation: float | None = None
    ratio: tuple[float, float, float] | None = None


def machine(device: str) -> dict[str, Any]:
    """Where and with what it was measured."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version for name in _VERSIONS if (version := _version(name))},
    }


def _processor() -> str:
    from lavis_peft.models.linear import processor

    lines = [line for line in processor().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def markdown(result: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    rows = [Row(**row) for row in result["rows"]]
    where = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        f"# Benchmark: {result['size']}, {result['llm']}",
        "",
        f"{where['date']}, {where['device']}, {where['threads']} threads, Python {where['python']}, {versions}.",
        f"Command: `{result['command']}`. Batch {result['batch']}, {result['repeats']} interleaved rounds, medians; "
        "a ratio is the median over the rounds, with quartiles.",
    ]
    if result["peak_flops"]:
        peaks = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in result["peak_flops"].items())
        lines.append(f"Largest matrix product measured here, TFLOP/s: {peaks}.")
    lines += ["", *_grid(rows)]
    if result["parts"]:
        total = sum(result["parts"].values())
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in result["parts"].items())
        lines += ["", f"A training step by parts: {shares}."]
    lines += [f"\n{note}" for note in result["notes"]]
    return "\n".join(lines)


def _grid(rows: Sequence[Row]) -> list[str]:
    head = "| work | who | s | samples/s | tokens/s | model, MiB | work, MiB | GFLOP/s | of peak | × ours (quartiles) |"
    lines = [head, "| --- | --- " + "| ---: " * 8 + "|"]
    for row in rows:
        cells = [
            f"{row.seconds:.3f}",
            _number(row.samples_per_second, ".2f"),
            _number(row.tokens_per_second, ".0f"),
            _number(row.held_bytes and row.held_bytes / 2**20, ".0f"),
            _number(row.peak_bytes and row.peak_bytes / 2**20, ".0f"),
            _number(row.flops and row.flops / 1e9, ".0f"),
            _number(row.utilisation, ".0%"),
            "" if row.ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio),
        ]
        lines.append(f"| {row.what} | {row.who} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def as_dict(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    return asdict(row)
