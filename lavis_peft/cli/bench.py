"""`lavis-peft bench`: how fast this machine trains, ranks and generates, beside other ways to do it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

_WHAT = ("train", "rank", "generate", "start-up", "epochs")
_AGAINST = ("plain", "single", "huggingface")


@click.command("bench")
@click.option("--size", type=click.Choice(["tiny", "mid", "real"]), default="mid", show_default=True,
              help="For a test, for CPU cores, or the sizes of FLAN-T5-XL, Vicuna-7B and ViT-g.")  # fmt: skip
@click.option("--llm", type=click.Choice(["t5", "llama"]), default="t5", show_default=True, help="Language model.")
@click.option(
    "--what",
    type=click.Choice(_WHAT),
    multiple=True,
    help="Work to measure; may be repeated [default: all but epochs].",
)
@click.option("--against", type=click.Choice([*_AGAINST, "none"]), multiple=True,
              help="Contenders besides the plugin; may be repeated [default: all].")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "half"]),
              help="Of the frozen parts [default: fp32 on a CPU, half on a GPU].")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Samples of a batch [default: tiny 4, mid 4, real 16].")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Interleaved rounds.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Where to measure; auto takes a GPU where there is one.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.md",
              help="Write the table and, beside it, .json to this file.")  # fmt: skip
def command(
    size: str,
    llm: str,
    what: tuple[str, ...],
    against: tuple[str, ...],
    precision: str | None,
    batch: int | None,
    repeats: int,
    device: str,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time a training step, ranking, generation and start-up, with random weights, in one process.

    epochs is three epochs over pictures in files, with run.feature_cache (its filling included), without, and plain.

    \b
    plain        the research code's procedure: LoRA in separate products, unfused
                 attention, float32, evaluation one question at a time
    single       ranking one candidate at a time, picture and question anew for each
    huggingface  transformers' InstructBLIP with peft (transformers 5)

    Contenders take turns in every round, so that a busy machine slows all of them; figures are medians.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported
    import lavis_peft
    from lavis_peft.checks import unwritable
    from lavis_peft.errors import ConfigError

    if output is not None and (problem := unwritable(output.expanduser().resolve().parent)):
        raise ConfigError(f"--output {output}: {problem}")
    lavis_peft.register()
    import torch
    from tqdm import tqdm

    from lavis_peft.bench import sizes, table
    from lavis_peft.bench.run import Plan, run
    from lavis_peft.models.language import check_family

    check_family(llm)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    plan = Plan(
        size=size,
        llm=llm,
        precision=precision or ("fp32" if place == "cpu" else "half"),
        device=place,
        what=what or [each for each in _WHAT if each != "epochs"],
        against=[] if "none" in against else against or _AGAINST,
        repeats=repeats,
        batch=batch or sizes.BATCH[size],
    )
    with tqdm(desc="bench", unit="run", disable=None, leave=False) as bar:
        result = run(plan, "lavis-peft " + " ".join(["bench", *sys.argv[2:]]), bar.update)
    text = table.markdown(result)
    if output is not None:
        _write(output.expanduser(), text, result)
    click.echo(json.dumps(result, indent=2) if as_json else text)


def _write(output: Path, text: str, result: dict[str, Any]) -> None:
    from lavis_peft.adapters.checkpoint import atomic_file

    for path, content in ((output, text), (output.with_suffix(".json"), json.dumps(result, indent=2))):
        with atomic_file(path) as file:
            file.write(f"{content}\n".encode())
