"""The research code's `run` section: its tasks, its early stopping, and keys that its code never read."""

from collections.abc import Mapping
from typing import Any

from lavis_peft.research.findings import Findings

#: Its tasks that are other ones here.
TASKS = {
    "scienceqa": "multiple_choice_vqa",
    "iconqa": "multiple_choice_vqa",
    "vizwiz": "vqa_accuracy_peft",
    "flickr30k_instruct": "captioning_peft",
}
_RUNNERS = {"None": "runner_peft", "runner_base": "runner_peft", "runner_iter": "runner_peft_iter"}
#: Its runner stops after so many validations without a better metric, unless it is told not to.
PATIENCE = 3

_RANKED = "its task ranks the choices whatever this says"
_GENERATED = "its task generates whatever this says"
_IDLE = {
    "scienceqa": dict.fromkeys(
        ("inference_method", "num_ans_candidates", "prompt", "num_beams", "max_len", "min_len"), _RANKED
    ),
    "vizwiz": dict.fromkeys(("inference_method", "num_ans_candidates"), _GENERATED),
    "flickr30k_instruct": {"inference_method": _GENERATED, "report_metric": "its task scores whatever this says"},
}
_IDLE["iconqa"] = _IDLE["scienceqa"]
_TASK_DEFAULTS = {"vizwiz": {"num_beams": 3, "max_len": 10, "min_len": 1}}


def translate_run(old: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    """The section in the plugin's form; what the plugin's runner and tasks check themselves isn't checked here.

    Args:
        old: A `run` section.
        found: Gets what there is to say.
    """
    runner, task = old.get("runner"), old.get("task")
    ours = _RUNNERS.get(str(runner), runner)
    section = {"runner": ours, "task": TASKS.get(str(task), task)}
    found.notes.append(f"run.runner: {runner or 'its default'} is {ours}")
    if section["task"] != task:
        found.notes.append(f"run.task: {task} is {section['task']}")
    idle = _idle(old, ours)
    for key, value in old.items():
        if key in idle:
            if value is not None:
                found.dropped.append(f"run.{key} ({idle[key]})")
        elif key not in ("runner", "task", "disable_early_stopping"):
            section[key] = value
    if task == "vizwiz":
        found.notes.append(
            "run.task: in scoring its vizwiz asks the bare question; here the prompt is that of training"
        )
    if task == "vizwiz" and section.pop("prompt", None):
        found.problems.append(
            "run.prompt: was for scoring alone; here datasets.vizwiz_peft.prompt is for training and scoring"
        )
    for key, value in _TASK_DEFAULTS.get(str(task), {}).items():
        if key not in old:
            section[key] = value
            found.notes.append(f"run.{key}: not set; {value} is its code's default")
    _early_stopping(old, section, found)
    return section


def _idle(old: Mapping[str, Any], runner: Any) -> dict[str, str]:
    """The keys that its code doesn't read, and why."""
    idle = dict(_IDLE.get(str(old.get("task")), {}))
    if old.get("lr_sched") == "linear_decay_lr":
        idle |= dict.fromkeys(("warmup_lr", "warmup_steps"), "its linear_decay_lr has no warm-up")
    idle["lr_layer_decay"] = "it scales learning rates of the vision encoder, which is frozen"
    if runner == "runner_peft":
        idle["train_dataset_ratios"] = "its runner reads another key by a slip of the pen"
    return idle


def _early_stopping(old: Mapping[str, Any], section: dict[str, Any], found: Findings) -> None:
    disabled = old.get("disable_early_stopping", False)
    if not isinstance(disabled, bool):
        found.problems.append(f"run.disable_early_stopping: must be true or false, found {disabled!r}")
        return
    # Its other runner has no early stopping.
    if section["runner"] != "runner_peft" or section.get("early_stopping") is not None:
        return
    if not disabled and section.get("valid_splits"):
        section["early_stopping"] = PATIENCE
        unsaid = "not set; " if "disable_early_stopping" not in old else ""
        found.notes.append(f"run.disable_early_stopping: {unsaid}it stops after {PATIENCE} validations without a gain")
