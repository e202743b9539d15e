"""Trains with `lavis-peft train --resume`, kills it again and again, and compares the result with a run left alone."""

import json
import logging
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.runners.folders import FINISHED, kept_files, moment

_log = logging.getLogger(__name__)

TRAIN = """
import sys
from lavis_peft.cli import main
main(["train", "--resume", *sys.argv[1:]])
"""

COLORS = ("red", "blue", "green", "yellow")
#: The main process writes it when all have come.
_JOINED = "Running Parameters"
_SAVED = re.compile(r"Saved epoch (\d+)(?:, iteration (\d+))? to \S+/checkpoint_\d")

LORA = {"peft_type": "LORA", "sublayers": ["self_attention", "cross_attention", "ffn"], "r": 4, "lora_dropout": 0.1}
ADALORA = {
    "peft_type": "ADALORA",
    "sublayers": ["self_attention", "cross_attention", "ffn"],
    "init_r": 4,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 0.2,
    "deltaT": 2,
}
#: A run config by what is special to it: adapters, keys of its `run` section, processes.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "LoRA, two iterations a step": (LORA, {"accum_grad_iters": 2, "max_epoch": 4}, 1),
    "AdaLoRA, counting iterations, a data worker": (
        ADALORA,
        {"runner": "runner_peft_iter", "max_iters": 24, "iters_per_inner_epoch": 8, "num_workers": 1},
        1,
    ),
    "AdaLoRA, keeping three": (ADALORA, {"max_epoch": 4, "keep_checkpoints": 3, "save_every_steps": 2}, 1),
    "LoRA, two processes": (LORA, {"max_epoch": 3, "batch_size_train": 4}, 2),
}


def write_config(folder: Path, variant: str, seed: int) -> Path:
    """A run config of the tiny T5 on a few drawn pictures, which trains for some seconds."""
    adapter, special, _ = VARIANTS[variant]
    files = {split: {"storage": _draw(folder, split, count)} for split, count in _SIZES.items()}
    pictures = {"name": "peft_image", "image_size": 64}
    config = {
        "model": {
            "arch": "blip2_t5_instruct_peft",
            "model_type": "tiny",
            "adapters": {"qformer": adapter, "llm": "frozen"},
        },
        "datasets": {
            "instruct_json": {
                "vis_processor": {"train": pictures, "eval": pictures},
                "build_info": {"annotations": files},
            }
        },
        "run": {
            "task": "multiple_choice_vqa",
            "init_lr": 1e-2,
            "lr_sched": "linear_warmup_cosine_per_step_lr",
            "batch_size_train": 8,
            "device": "cpu",
            "seed": seed,
            "valid_splits": ["val"],
            "test_splits": ["test"],
            "save_every_steps": 1,
            "save_freq": 0,
            "output_dir": str(folder / "output"),
            "tensorboard": False,
            **special,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


_SIZES = {"train": 48, "val": 12, "test": 12}


def _draw(folder: Path, split: str, count: int) -> str:
    records = []
    for number in range(count):
        draw = random.Random(f"{split}-{number}")
        color, shape = draw.choice(COLORS), draw.choice(("rectangle", "ellipse"))
        left, top, side = draw.randrange(30), draw.randrange(30), draw.randrange(15, 30)
        picture = Image.new("RGB", (64, 64), "white")
        getattr(ImageDraw.Draw(picture), shape)((left, top, left + side, top + side), fill=color)
        picture.save(folder / f"{split}{number}.png")
        # Not the color it is but the next: the tiny model knows the colors, and there must be something to learn.
        answer = COLORS[(COLORS.index(color) + 1) % len(COLORS)]
        question = {"question": "what color is the shape?", "answer": answer, "choices": list(COLORS)}
        records.append({"image": f"{split}{number}.png", **question})
    (folder / f"{split}.json").write_text(json.dumps(records))
    return str(folder / f"{split}.json")


# ---- what a run leaves ----------------------------------------------------------------------------------------------


def outcome(output: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on whether it was interrupted."""
    (folder,) = (path.parent for path in output.glob(f"*/{FINISHED}"))
    _, last = kept_files(folder)[-1]
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return {
        "last": {
            key: value for key, value in read_checkpoint(last).items() if key in ("model", "optimizer", "progress")
        },
        "best": read_checkpoint(folder / "checkpoint_best.pth")["model"],
        "log": [{key: value for key, value in line.items() if "seconds" not in key} for line in lines[1:]],
        "metrics": json.loads((folder / FINISHED).read_text())["metrics"],
        "answers": {path.name: path.read_text() for path in sorted((folder / "result").glob("*_best.json"))},
        "history": [path.read_text() for path in folder.glob("result/adalora_history.json")],
    }


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two nested values differ in a single bit."""
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        return [text for key in first for text in differences(first[key], second[key], f"{where}.{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [text for number, pair in pairs for text in differences(*pair, f"{where}[{number}]")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [f"{where}: tensors differ"]
    return [] if first == second else [f"{where}: {str(first)[:200]} and {str(second)[:200]}"]


# ---- killing --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was done to a run, and what it lost by that."""

    kills: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    #: Kills after which a half-written file lay beside the checkpoints.
    half_written: int = 0
    #: Kills after which the run had at least one checkpoint.
    with_checkpoint: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kinds}) in {self.attempts} attempts; {self.half_written} left a "
            f"half-written file, {self.with_checkpoint} came after a checkpoint; {len(self.lost)} checkpoints lost"
        )


class Run:
    """A run that is started, killed and started again until it is done.

    Args:
        nursery: Starts its processes.
        config: Its run config.
        processes: How many share it.
        seed: Of the kills' moments.
    """

    def __init__(self, nursery: Any, config: Path, processes: int, seed: int) -> None:
        self._nursery = nursery
        self._config = config
        self._count = processes
        self._random = random.Random(seed)
        self.output = config.parent / "output"
        self.tally = Tally()
        self._newest = moment(-1)

    def start(self) -> list[Any]:
        """Start the processes of one attempt."""
        self.tally.attempts += 1
        folder = self.output.parent / f"attempt{self.tally.attempts}"
        folder.mkdir()
        arguments = ("--cfg-path", self._config)
        if self._count == 1:
            return [self._nursery.start(TRAIN, folder / "rank0.txt", *arguments)]
        return self._nursery.ranks(TRAIN, folder, [arguments] * self._count)

    def finish(self) -> float:
        """Let it run to its end; gives the seconds."""
        began = time.monotonic()
        processes = self.start()
        for process in processes:
            assert process.wait(240) == 0, process.said()[-4000:]
        return time.monotonic() - began

    def attempt(self, kind: str, longest: float) -> bool:
        """Start it and kill it; False where it came to its end first.

        Args:
            kind: Where to kill: any time, start-up, save, evaluation or end.
            longest: How long an attempt lasts that nobody interrupts, seconds.
        """
        processes = self.start()
        is_now = self._moment(kind, longest, processes[0].output)
        while not is_now():
            if all(process.poll() is not None for process in processes):
                codes = [process.code for process in processes]
                assert codes == [0] * len(codes), processes[0].said()[-4000:]
                return False
            time.sleep(0.0005)
        # One, and the others must notice; or all at once, as when a machine goes. Before they have found one another,
        # a process alone can't tell a dead one from a slow one: there the launcher ends them all.
        alone = self._random.random() < 0.5 and _JOINED in processes[0].said()
        victims = [self._random.choice(processes)] if alone else processes
        for process in victims:
            process.send(signal.SIGKILL)
        codes = [process.wait(60) for process in processes]
        if -signal.SIGKILL not in codes:
            return False  # it was through
        self.tally.kills[kind] += 1
        self._check(processes[0].said())
        return True

    def _moment(self, kind: str, longest: float, output: Path) -> Callable[[], bool]:
        began, draw = time.monotonic(), self._random
        if kind == "save":
            count = draw.randrange(6)
            return _Saves(self.output, count)
        if kind == "evaluation":
            return _Words(output, "Evaluating on", draw.randrange(2), draw.random() * 0.2)
        if kind == "end":
            return _Words(output, "Scoring the best epoch", 0, draw.random() * 0.4)
        # Not the whole of its time: an attempt begins where the last one was killed, so that all of a run has its turn.
        after = draw.random() * longest * (0.4 if kind == "any time" else 0.1)
        return lambda: time.monotonic() - began >= after

    def _check(self, said: str) -> None:
        """Whether every checkpoint file is whole, and everything is there that was said to be saved."""
        found = [moment(-1)]
        for path in self.output.glob("*/checkpoint_*.pth"):
            try:
                content = read_checkpoint(path)
            except Exception as error:
                self.tally.lost.append(f"{path.name}: {error}")
                continue
            found.append(moment(content["epoch"], content["iteration"]))
        announced = [moment(int(epoch), int(iteration or 0)) for epoch, iteration in _SAVED.findall(said)]
        self._newest = max(self._newest, *announced, *found)
        if max(found) < self._newest:
            self.tally.lost.append(f"{self._newest} was there or said to be, {max(found)} is the newest now")
        self.tally.half_written += any(True for _ in self.output.glob("*/.checkpoint*.tmp"))
        self.tally.with_checkpoint += len(found) > 1


class _Saves:
    """True while the next checkpoint after so many is being written."""

    def __init__(self, output: Path, count: int) -> None:
        self._output = output
        self._left = count
        self._seen: set[tuple[str, int]] = set()

    def __call__(self) -> bool:
        for path in self._output.glob("*/.checkpoint*.tmp"):
            try:
                name = (path.name, path.stat().st_ino)
            except FileNotFoundError:
                continue
            if name not in self._seen:
                self._seen.add(name)
                self._left -= 1
                return self._left < 0
        return False


class _Words:
    """True some seconds after the process has written certain words so many times more than once."""

    def __init__(self, output: Path, words: str, count: int, delay: float) -> None:
        self._output = output
        self._words = words
        self._count = count
        self._delay = delay
        self._since: float | None = None

    def __call__(self) -> bool:
        if self._since is None:
            text = self._output.read_text(errors="replace") if self._output.exists() else ""
            if text.count(self._words) > self._count:
                self._since = time.monotonic()
        return self._since is not None and time.monotonic() - self._since >= self._delay


KINDS = ("any time", "any time", "any time", "save", "save", "evaluation", "start-up")


def killed_run(nursery: Any, config: Path, processes: int, seed: int, kills: int, longest: float) -> Run:
    """A finished run that was killed so many times, or fewer where it came to its end first."""
    run = Run(nursery, config, processes, seed)
    chooser = random.Random(f"kinds-{seed}")
    for kind in [*chooser.choices(KINDS, k=kills - 1), "end"]:
        if not run.attempt(kind, longest):
            return run
    run.finish()
    return run


class LeftAlone:
    """What a variant's run comes to if nobody interrupts it, and how many seconds it takes; each is run once.

    Args:
        nursery: Starts its processes.
        folder: Makes a new folder of a given name.
    """

    def __init__(self, nursery: Any, folder: Callable[[str], Path]) -> None:
        self._nursery = nursery
        self._folder = folder
        self._done: dict[tuple[str, int], tuple[dict[str, Any], float]] = {}

    def __call__(self, variant: str, seed: int) -> tuple[dict[str, Any], float]:
        if (variant, seed) not in self._done:
            config = write_config(self._folder("alone"), variant, seed)
            run = Run(self._nursery, config, VARIANTS[variant][2], seed)
            seconds = run.finish()
            self._done[variant, seed] = outcome(run.output), seconds
        return self._done[variant, seed]
