"""Whether cost grows as work grows: time per sample from 100 to 10,000 samples, in training and in evaluation.

    python projects/bench/scaling.py [--samples 100 1000 10000] [--rounds 3] [--output FILE.md] [--json]

Whole runs of the plugin's runner on the CPU with the tiny model of `lavis-peft bench`, in which the model's own work is
small and what depends on the number of samples would be seen. Times are the process's own, which a busy machine hardly
changes; an epoch's and an evaluation's are per sample, with everything that happens within: reading pictures, training,
AdaLoRA's allocation, logs, predictions written and scored. A training step's is the median.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lavis_peft

lavis_peft.register()

import yaml  # noqa: E402  after the plugin made the installed libraries fit each other
from PIL import Image  # noqa: E402

from lavis_peft.adapters.checkpoint import atomic_file  # noqa: E402
from lavis_peft.bench import sizes  # noqa: E402
from lavis_peft.bench.table import machine  # noqa: E402
from lavis_peft.cli.running import build_runner  # noqa: E402

BATCH, PICTURES, SUBLAYERS = 50, 50, ["self_attention", "cross_attention", "ffn"]
LORA = {"peft_type": "LORA", "sublayers": SUBLAYERS, "r": 4, "lora_alpha": 4}
ADALORA = {**LORA, "peft_type": "ADALORA", "init_r": 6, "target_r": 4, "tinit": 0.1, "tfinal": 0.1, "deltaT": 1}
del ADALORA["r"]
RATES = {"train": "training, s a sample", "evaluation": "evaluation, s a sample"}
STEPS = {"lora": "LoRA step, s", "adalora": "AdaLoRA step, s", "allocation": "allocation, s a step"}


def write_data(folder: Path, samples: int) -> dict[str, Any]:
    """Questions about a few pictures in a folder; returns their `datasets` section."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(samples)
    for number in range(PICTURES):
        Image.new("RGB", (64, 64), (number, 255 - number, number)).save(folder / f"{number}.png")

    def record(number: int) -> dict[str, Any]:
        words = " ".join(f"w{draws.randrange(400)}" for _ in range(draws.randint(4, 12)))
        choices = [f"w{draws.randrange(200)}", f"w{200 + draws.randrange(200)}"]
        return {"image": f"{number % PICTURES}.png", "question": words, "answer": choices[0], "choices": choices}

    files = {}
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        path.write_text(json.dumps([record(number) for number in range(samples)]))
        files[split] = {"storage": str(path)}
    picture = {"name": "peft_image", "image_size": 64}
    section = {"vis_processor": {"train": picture, "eval": picture}, "build_info": {"annotations": files}}
    return {"instruct_json": section}


def make_runner(folder: Path, samples: int, epochs: int, adapter: dict[str, Any]) -> Any:
    """A runner of the tiny model on so many samples."""
    model = sizes.model_section("tiny", "t5", "fp32", folder)
    model |= {"model_type": "flant5xl", "adapters": {"qformer": adapter, "llm": "frozen"}}
    run = {
        "runner": "runner_peft",
        "task": "multiple_choice_vqa",
        "max_epoch": epochs,
        "init_lr": 1e-4,
        "batch_size_train": BATCH,
        "batch_size_eval": BATCH,
        "lr_sched": "linear_decay_lr",
        "device": "cpu",
        "num_workers": 0,
        "valid_splits": ["val"] if adapter is LORA else [],
        "output_dir": str(folder / "output"),
        "tensorboard": False,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"model": model, "datasets": write_data(folder / "data", samples), "run": run}))
    return build_runner(str(path), [], training=True)


def timed(action: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """The action, the processor's seconds noted."""

    def call(*arguments: Any, **more: Any) -> Any:
        started = time.process_time()
        try:
            return action(*arguments, **more)
        finally:
            into.append(time.process_time() - started)

    return call


def measure(samples: int, kind: str, least: int) -> dict[str, float]:
    """The processor's seconds per sample and per step of one run.

    Args:
        samples: In the training and in the validation set, each.
        kind: ``lora`` or ``adalora``.
        least: Samples to train on at least, in as many epochs as that takes.
    """
    epochs = max(1, least // samples)
    evaluations: list[float] = []
    training: list[float] = []
    allocations: list[float] = []
    stamps: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(Path(folder), samples, epochs, ADALORA if kind == "adalora" else LORA)
        step = runner.task.train_step

        def stamped(samples: dict[str, Any], **more: Any) -> Any:
            stamps.append((samples["iters"], time.process_time()))
            return step(samples=samples, **more)

        runner.task.train_step = stamped
        epochs_of = runner._epochs
        runner._epochs = lambda: timed(epochs_of(), training)
        runner.eval_epoch = timed(runner.eval_epoch, evaluations)
        if kind == "adalora":
            budget = runner.plain_model.adalora
            budget.after_step = timed(budget.after_step, allocations)
        runner.train()
    steps = [later - earlier for (_, earlier), (iteration, later) in pairwise(stamps) if iteration]
    found = {
        "train": sum(training) / (epochs * samples),
        kind: statistics.median(steps),
    }
    if kind == "adalora":
        return {**found, "allocation": statistics.mean(allocations)}
    return {**found, "evaluation": sum(evaluations) / (epochs * samples)}


def measured(counts: list[int], rounds: int, least: int) -> dict[str, dict[int, list[float]]]:
    """Every figure's values by number of samples, one a round."""
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in {**RATES, **STEPS}}
    for _ in range(rounds):
        for count in counts:
            for kind in ("lora", "adalora"):
                for name, value in measure(count, kind, least).items():
                    found[name][count].append(value)
            print(f"{count} samples measured", file=sys.stderr)  # noqa: T201
    return found


def markdown(found: dict[str, dict[int, list[float]]], where: dict[str, Any], command: str) -> str:
    """The figures as a table: medians in milliseconds, and the largest number's over the smallest's."""
    counts = list(found["train"])
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        "# Cost as work grows: tiny model, T5",
        "",
        f"{where['date']}, {where['device']}, {where['threads']} threads, Python {where['python']}, {versions}.",
        f"Command: `{command}`. Batches of {BATCH}; medians of the rounds, in milliseconds of processor time.",
        "",
        f"| | {' | '.join(f'{count:,} samples' for count in counts)} | last / first |",
        f"| --- | {' | '.join('---:' for _ in counts)} | ---: |",
    ]
    for name, title in {**RATES, **STEPS}.items():
        medians = [statistics.median(found[name][count]) for count in counts]
        cells = " | ".join(f"{1000 * median:.3f}" for median in medians)
        lines.append(f"| {title.replace(', s', ', ms')} | {cells} | {medians[-1] / medians[0]:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1000, 10000], help="sizes of the data")
    parser.add_argument("--rounds", type=int, default=1, help="times that each size is measured (default: 1)")
    parser.add_argument("--least", type=int, default=1000, help="samples to train on at least (default: 1000)")
    parser.add_argument("--output", type=Path, help="write the table there, and the figures beside it as .json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    found = measured(options.samples, options.rounds, options.least)
    where = machine("cpu")
    command = f"python projects/bench/scaling.py {' '.join(sys.argv[1:])}".strip()
    table, figures = markdown(found, where, command), json.dumps({**where, "command": command, "seconds": found})
    if options.output:
        for path, text in ((options.output, table), (options.output.with_suffix(".json"), figures + "\n")):
            with atomic_file(path) as file:
                file.write(text.encode())
    print(figures if options.json else table)  # noqa: T201


if __name__ == "__main__":
    main()
