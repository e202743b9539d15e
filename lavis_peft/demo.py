"""The demo's runs: real `lavis-peft` commands as processes, two at a time, and what came out of them."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_peft.cores import available_cores
from lavis_peft.demo_picture import draw_examples
from lavis_peft.errors import UserError
from lavis_peft.paths import projects_dir

#: `--quick`: enough to see every step work, far too little to learn much.
QUICK = (
    "run.max_epoch=1",
    "run.warmup_steps=2",
    "run.batch_size_train=32",
    "datasets.easy_vqa.max_samples={train: 640, test: 300}",
)
#: The control tunes what the adapters' run tunes besides the adapters.
CONTROL = "model.adapters={qformer: frozen, llm: frozen}"
KINDS = ("yes_no", "color", "shape")
_STEP = re.compile(r"data epoch: \[(\d+)\]\s+\[\s*(\d+)/(\d+)\]")


@dataclass
class Demo:
    """One demo in one folder.

    Args:
        folder: Where everything goes; exists and is empty.
        llm: ``t5`` or ``vicuna``.
        quick: Few samples, one epoch.
        say: Called with a line for each thing done.
    """

    folder: Path
    llm: str
    quick: bool
    say: Callable[[str], None]
    _processes: list[subprocess.Popen] = field(default_factory=list)
    _stopped: bool = False

    def run(self) -> dict[str, Any]:
        """Train, evaluate, merge, and gather the figures.

        Raises:
            UserError: One of the runs failed; its log is named.
        """
        started = time.monotonic()
        # Two lanes of about the same length keep two cores busy; with tensors this small, threads can't.
        with ThreadPoolExecutor(max_workers=2 if available_cores() > 1 else 1) as pool:
            lanes = [pool.submit(self._tuned_lane), pool.submit(self._control_lane)]
            try:
                wait(lanes, return_when=FIRST_EXCEPTION)
                for failed in (lane for lane in lanes if lane.done()):
                    failed.result()
                runs = {name: run for lane in lanes for name, run in lane.result().items()}
            except BaseException:
                self.stop()
                raise
        seconds = round(time.monotonic() - started, 1)
        draw_examples(read_predictions(runs["before"]), read_predictions(runs["after"]), self.folder / "examples.png")
        figures = {**read_figures(runs), "llm": self.llm, "quick": self.quick, "seconds": seconds}
        return {**figures, "output": str(self.folder), "files": {name: str(run) for name, run in runs.items()}}

    def stop(self) -> None:
        """End the processes that are still running, and start no more."""
        self._stopped = True
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

    def progress(self) -> str:
        """How far each training run is, for a status line."""
        states = []
        for log in sorted(self.folder.glob("logs/*train*.log")):
            if steps := _STEP.findall(log.read_text(errors="replace")):
                epoch, step, most = steps[-1]
                states.append(f"{log.stem.removesuffix('-train')}: epoch {epoch}, step {step}/{most}")
        return "  ".join(states)

    def _tuned_lane(self) -> dict[str, Path]:
        after = self._run("train", "lora")
        checkpoint = max(after.glob("checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
        given = f"run.resume_ckpt_path={checkpoint}"
        shuffled = self._run("evaluate", "shuffled", "datasets.easy_vqa.shuffle_images=true", given)
        merged = self.folder / "merged"
        source = ["--cfg-path", str(self._config()), "--checkpoint", str(checkpoint), "--output", str(merged)]
        self._process("merge", ["merge", *source])
        self.say("merged the adapters into the base weights")
        return {
            "after": after,
            "shuffled": shuffled,
            "merged": self._run("evaluate", "merged", config=merged / "run.yaml"),
        }

    def _control_lane(self) -> dict[str, Path]:
        before = self._run("evaluate", "before")
        return {"before": before, "control": self._run("train", "control", CONTROL)}

    def _config(self) -> Path:
        return projects_dir() / "demo" / f"easy_vqa_{self.llm}.yaml"

    def _run(self, command: str, name: str, *options: str, config: Path | None = None) -> Path:
        """Train or evaluate in a process of its own; returns the run's folder."""
        folder = self.folder / "runs" / name
        given = [f"run.output_dir={folder}", *(QUICK if self.quick else ()), *options]
        self._process(f"{name}-{command}", [command, "--cfg-path", str(config or self._config()), "--options", *given])
        run = next(folder.iterdir())
        accuracy = json.loads((run / "result" / "metrics_test.json").read_text())["accuracy"]
        self.say(f"{name}: {accuracy:.2f} % of the test questions right")
        return run

    def _process(self, name: str, arguments: list[str]) -> None:
        if self._stopped:
            raise UserError("the demo was stopped")
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        threads = str(max(1, available_cores() // 2))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "lavis_peft.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self._processes.append(process)
            code = process.wait()
        if code:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise UserError(f"`lavis-peft {arguments[0]}` ended with exit code {code}: {last[0]} (see {log})")


def read_figures(runs: dict[str, Path]) -> dict[str, Any]:
    """The demo's figures from its runs' files.

    Args:
        runs: Run folders under ``before``, ``after``, ``merged``, ``shuffled`` and ``control``.

    Returns:
        ``accuracy_NAME`` and ``by_type`` in percent, ``questions``, how many the merged model answers differently,
        and ``trainable`` parameters of the adapters' run and of the control.
    """
    rows = {name: read_predictions(run) for name, run in runs.items()}
    rows["blind"] = blind_guesses(rows["after"])
    by_type = {name: accuracy_by_kind(found) for name, found in rows.items()}
    answers = {name: {row["question_id"]: row["prediction"] for row in rows[name]} for name in ("after", "merged")}
    return {
        **{f"accuracy_{name}": kinds["all"] for name, kinds in by_type.items()},
        "by_type": by_type,
        "questions": len(rows["after"]),
        "merged_differs": sum(answers["merged"][key] != value for key, value in answers["after"].items()),
        "trainable": trainable(runs["after"]),
        "trainable_control": trainable(runs["control"]),
    }


def read_predictions(run: Path) -> list[dict[str, Any]]:
    """The test split's predictions of a run, one row a question."""
    (path,) = run.glob("result/test_*.json")
    return json.loads(path.read_text())


def blind_guesses(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer each test question with the training split's most frequent answer to the same words, picture unseen."""
    from lavis_peft.datasets.easy_vqa import data_dir, question_type, read_split

    seen: dict[str, Counter] = defaultdict(Counter)
    for record in read_split(data_dir(), "train"):
        seen[record.question][record.answers[0]] += 1
        seen[question_type(record.question) or ""][record.answers[0]] += 1
    questions = {record.question_id: record.question for record in read_split(data_dir(), "test")}
    guesses = []
    for row in rows:
        question = questions[row["question_id"]]
        common = seen.get(question) or seen[question_type(question) or ""]
        prediction = common.most_common(1)[0][0]
        guesses.append({**row, "prediction": prediction, "correct": prediction == row["answer"]})
    return guesses


def accuracy_by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Percent of right answers, over ``all`` questions and for each kind of them."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right["all"].append(row["correct"])
        right[row["question_type"].split("/")[0]].append(row["correct"])
    return {kind: 100 * sum(hits) / len(hits) for kind, hits in right.items()}


def trainable(run: Path) -> int:
    """Parameters that a run's newest checkpoint holds, which are those that were trained."""
    from lavis_peft.adapters.checkpoint import read_checkpoint

    checkpoint = max(run.glob("checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
    return sum(value.numel() for value in read_checkpoint(checkpoint)["model"].values())
