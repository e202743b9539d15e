"""Several real processes with gloo on the CPU: what they compute together, and that one's failure ends all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

RunFile = Callable[..., Path]

TRAIN = """
import sys
from lavis_peft.cli import main
main(["train", *sys.argv[1:]])
"""
# Before TRAIN: the first argument is the rank that fails, and this is how.
FAILING = {
    "step": """
from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask as Task
def train_step(self, model, samples):
    raise RuntimeError("the step went wrong")
Task.train_step = train_step
""",
    "evaluation": """
from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask as Task
def valid_step(self, model, samples):
    raise RuntimeError("the evaluation went wrong")
Task.valid_step = valid_step
""",
    "kill": """
import os, signal
from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask as Task
Task.valid_step = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
""",
}


def failing(how: str, rank: int) -> str:
    body = "".join(f"    {line}\n" for line in FAILING[how].splitlines())
    start = "import os, lavis_peft\nlavis_peft.register()\n"
    return f"{start}if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID'))) == {rank}:\n{body}{TRAIN}"


def finish(started: Sequence[Any]) -> tuple[list[int], str, float]:
    """Exit codes, all that was written, and seconds."""
    began = time.monotonic()
    codes = [process.wait(60) for process in started]
    return codes, "".join(process.said() for process in started), time.monotonic() - began


# ---- what they compute -----------------------------------------------------------------------------------------------

GRADIENTS = """
import sys
import torch
from lavis_peft.cli.running import build_runner
from lavis_peft.runners import distributed

config, batch_size, output = sys.argv[1:]
runner = build_runner(config, [f"run.batch_size_train={batch_size}"], training=True)
noted = {}

def note(optimizer, *_):
    for name, parameter in runner.plain_model.named_parameters():
        if parameter.requires_grad and name not in noted:
            noted[name] = parameter.grad.clone()

runner.optimizer.register_step_pre_hook(note)
runner.train()
torch.save(noted, f"{output}.{distributed.rank()}")
distributed.shutdown()
"""


def test_gradients_are_those_of_one_process_with_the_batch_of_all(
    nursery: Any, run_file: RunFile, tmp_path: Path
) -> None:
    # An odd number of questions: the second process's share is filled up. The targets have one length, since the loss
    # is a mean over tokens.
    config = run_file(sizes={"train": 13}, max_epoch=1, valid_splits=None, test_splits=None)
    alone = nursery.start(GRADIENTS, tmp_path / "alone.txt", config, 6, tmp_path / "alone")
    pair = nursery.ranks(GRADIENTS, tmp_path, [(config, 3, tmp_path / "pair")] * 2)
    for process in (alone, *pair):
        assert process.wait() == 0, process.said()
    expected, *found = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.0", "pair.0", "pair.1"))
    assert len(expected) > 20 and sum(float(gradient.abs().sum()) > 0 for gradient in expected.values()) > 10
    for own in found:
        assert own.keys() == expected.keys()
        for key, gradient in expected.items():
            tolerance = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(own[key], gradient, rtol=0, atol=tolerance, msg=key)


# The model's answer depends on the question alone, so that what is counted is known.
EVALUATION = """
import json, sys
from argparse import Namespace
from types import SimpleNamespace
import torch
from lavis_peft.runners import distributed
from lavis_peft.runners.loaders import eval_loader
from lavis_peft.tasks.multiple_choice_vqa import MultipleChoiceVqaTask

class Questions(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size
    def __len__(self):
        return self.size
    def question_ids(self):
        return [str(number) for number in range(self.size)]
    def __getitem__(self, number):
        return {"image": torch.zeros(1), "question_id": str(number), "text_input": "", "choices": ["a", "b"],
                "answers": ["a"], "answer": "a", "question_type": ""}
    def collater(self, samples):
        batch = {key: [sample[key] for sample in samples] for key in samples[0]}
        return {**batch, "image": torch.stack(batch["image"])}

class Model:
    device = torch.device("cpu")
    def before_evaluation(self, **_):
        pass
    def score_candidates(self, image, prompts, candidates):
        return [torch.tensor([0.0, 1.0]) for _ in candidates]

section = SimpleNamespace(device="cpu")
section.get = lambda key, default=None: getattr(section, key, default)
distributed.init_distributed_mode(section)
found = {}
for size in json.loads(sys.argv[1]):
    for shared in (True, False):
        task, dataset = MultipleChoiceVqaTask(), Questions(size)
        task.before_evaluation(Model(), dataset)
        rows = task.evaluation(Model(), eval_loader(dataset, 2, 0, shared, on_gpu=False))
        answered = sum(distributed.gathered(len(rows)))
        found[f"{size} {shared}"] = [answered, task.after_evaluation(rows, "test", 0)["total"]]
if distributed.is_main():
    open(sys.argv[2], "w").write(json.dumps(found))
distributed.shutdown()
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_no_question_is_dropped_or_counted_twice(processes: int, nursery: Any, tmp_path: Path) -> None:
    sizes = [1, 2, 5, 7]
    started = nursery.ranks(EVALUATION, tmp_path, [(json.dumps(sizes), tmp_path / "found.json")] * processes)
    assert finish(started)[0] == [0] * processes, started[0].said()
    found = json.loads((tmp_path / "found.json").read_text())
    for size in sizes:
        # Each once; only a process without a share answers a question that another has.
        assert found[f"{size} True"] == [max(size, processes), size]
        assert found[f"{size} False"] == [size * processes, size]


def test_bad_samples_are_left_out_by_all(nursery: Any, run_file: RunFile, tmp_path: Path) -> None:
    config = run_file(
        sizes={"train": 8, "val": 3}, batch_size_train=1, on_bad_sample="skip", num_workers=1, test_splits=None
    )
    (tmp_path / "data" / "train3.png").write_bytes(b"no picture")
    # Gone between the check at the start and the reading. With one sample a batch, each leaves a process with nothing.
    vanish = (
        "import pathlib; from lavis_peft.runners.runner_peft import RunnerPeft as R; train = R.train\n"
        f"def gone(self):\n    pathlib.Path({str(tmp_path)!r}, 'data/train5.png').unlink(missing_ok=True)\n"
        "    return train(self)\nR.train = gone\n"
    )
    started = nursery.ranks(vanish + TRAIN, tmp_path, [("--cfg-path", config)] * 2)
    codes, said, _ = finish(started)
    assert codes == [0, 0], said
    (log,) = (tmp_path / "output").glob("*/log.txt")
    epochs = [json.loads(line) for line in log.read_text().splitlines() if "train_loss" in line]
    assert [line["train_bad_samples"] for line in epochs] == [2, 2]
    for name in ("train3.png", "train5.png"):
        counts = [process.said().count(f"Left out of training: {tmp_path / 'data' / name}") for process in started]
        assert max(counts) == 1, said  # once by each process that comes to it, in whichever epoch


# ---- one's failure is all's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "rank"), [("step", 1), ("evaluation", 0)])
def test_an_error_in_one_process_ends_all(how: str, rank: int, nursery: Any, run_file: RunFile, tmp_path: Path) -> None:
    started = nursery.ranks(failing(how, rank), tmp_path, [("--cfg-path", run_file())] * 2)
    codes, _, seconds = finish(started)
    assert codes == [1, 1]
    reason = f"RuntimeError: the {how} went wrong"
    assert started[rank].said().count(reason) == 1 and "Traceback" in started[rank].said()
    other = started[1 - rank].said()
    assert "Traceback" not in other
    assert other.count(f"Error: process 1 of 2: {reason}") == (1 if rank == 1 else 0)
    assert seconds < 40


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_without_a_launcher_that_would(
    rank: int, nursery: Any, run_file: RunFile, tmp_path: Path
) -> None:
    config = run_file()
    # As srun starts them.
    slurm = [{"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NTASKS": 2} for number in range(2)]
    port = {"MASTER_ADDR": "localhost", "MASTER_PORT": nursery.free_port()}
    started = [
        nursery.start(failing("kill", rank), tmp_path / f"{number}.txt", "--cfg-path", config, **env, **port)
        for number, env in enumerate(slurm)
    ]
    codes, said, seconds = finish(started)
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1), said
    assert said.count("is gone without a word") == 1 and "Traceback" not in said
    assert seconds < 40


def test_an_unreadable_picture_is_named_once(nursery: Any, run_file: RunFile, tmp_path: Path) -> None:
    config = run_file(sizes={"train": 8}, batch_size_train=4)
    (tmp_path / "data" / "train3.png").write_bytes(b"no picture")
    codes, said, seconds = finish(nursery.ranks(TRAIN, tmp_path, [("--cfg-path", config)] * 2))
    assert codes == [2, 2]
    assert said.count("train3.png: the image can't be read") == 1 and "Traceback" not in said
    assert seconds < 40


def test_a_failure_under_torchrun(run_file: RunFile, tmp_path: Path) -> None:
    import lavis_peft

    script = tmp_path / "failing.py"
    script.write_text(failing("kill", 1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    path = os.pathsep.join([str(Path(lavis_peft.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--cfg-path", str(run_file())],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    # torchrun's own account of it, and ours where the main process comes to it before torchrun ends it.
    assert "SIGKILL" in done.stderr or "is gone without a word" in done.stderr
    assert "Traceback" not in done.stdout
