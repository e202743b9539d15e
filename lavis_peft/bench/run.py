"""One benchmark: builds the contenders, lets each do each work in turn, and gathers the rows."""

import io
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lavis_peft.bench import epochs, huggingface, measure, parts, sizes, startup, table
from lavis_peft.bench.contender import Ours
from lavis_peft.bench.plain import Plain, Single
from lavis_peft.bench.table import Row
from lavis_peft.bench.trial import fitting, tried
from lavis_peft.bench.work import Work

WHAT = ("train", "rank", "generate", "start-up", "epochs")
AGAINST = ("plain", "single", "huggingface")
_OURS = "lavis-peft"
_PRODUCT = "matrix product"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        size: One of `sizes.SIZES`.
        llm: One of `sizes.FAMILIES`.
        precision: ``fp32`` or ``half``.
        device: ``cpu`` or ``cuda``.
        what: Some of `WHAT`.
        against: Some of `AGAINST`.
        repeats: Rounds.
        batch: Samples of a batch.
    """

    size: str
    llm: str
    precision: str
    device: str
    what: Sequence[str]
    against: Sequence[str]
    repeats: int
    batch: int


def run(plan: Plan, command: str, progress: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Measure what a plan says.

    Args:
        plan: The plan.
        command: How it was asked for; goes into the result.
        progress: Called after each action.

    Returns:
        Plain containers, for `table.markdown` and for JSON.
    """
    notes: list[str] = []
    rows: list[Row] = []
    found: dict[str, Any] = {"peak_flops": {}, "parts": {}}
    model_work = [what for what in plan.what if what != "start-up"]
    if model_work:
        with tempfile.TemporaryDirectory() as folder:
            rows, found = _models(plan, model_work, Path(folder), notes, progress)
    if "start-up" in plan.what:
        rows += startup.rows(plan.repeats, progress)
    return {
        "size": plan.size,
        "llm": plan.llm,
        "precision": plan.precision,
        "batch": plan.batch,
        "repeats": plan.repeats,
        "command": command,
        "machine": table.machine(plan.device),
        **found,
        "rows": [table.as_dict(row) for row in rows],
        "notes": notes,
    }


def _models(
    plan: Plan, what: Sequence[str], folder: Path, notes: list[str], progress: Callable[[], Any]
) -> tuple[list[Row], dict[str, Any]]:
    section = sizes.model_section(plan.size, plan.llm, plan.precision, folder, plan.device)
    work = sizes.work(plan.size, plan.batch, plan.device)
    contenders = _contenders(plan, section, notes)
    dtype = torch.float32 if plan.precision == "fp32" else _half(plan)
    product = measure.large_product(plan.device, dtype)
    if "rank" in what:  # before training, which takes each its own way
        able = {name: one for name, one in contenders.items() if hasattr(one, "rank")}
        ranks = {name: tried(f"rank: {name}", partial(one.rank, work), []) for name, one in able.items()}
        if ranks.get(_OURS):
            _note_ranks({name: found[0] for name, found in ranks.items() if found is not None}, notes)
    rows: list[Row] = []
    peak = 0.0
    timed: list[str] = []
    if "epochs" in what:
        drawn = partial(sizes.work, plan.size, device="cpu")
        pictures = epochs.Pictures.drawn(drawn, plan.batch, plan.device, folder)
        rows += epochs.rows(contenders, _OURS, pictures, plan.repeats, progress)
    for each in (each for each in what if each != "epochs"):
        able = {name: one for name, one in contenders.items() if hasattr(one, each)}
        if each != "rank":  # `single` is another way to rank, and nothing else
            able.pop("single", None)
        trials = {name: partial(getattr(one, each), work) for name, one in able.items()}
        able = {name: able[name] for name in fitting(each, trials, notes)}
        if _OURS in able:
            found, best = _compare(plan, each, able, work, product, notes, progress)
            rows, peak, timed = rows + found, max(peak, best), [*timed, each]
    split = {}
    if "train" in timed:
        ours = contenders[_OURS]
        times = [parts.step_parts(ours, work, _loader(section, plan)) for _ in range(max(2, plan.repeats))]
        split = {part: statistics.median(each[part] for each in times) for part in parts.PARTS}
    return rows, {"peak_flops": {str(dtype).removeprefix("torch."): peak} if timed else {}, "parts": split}


def _half(plan: Plan) -> torch.dtype:
    return torch.float16 if plan.llm == "llama" and plan.device != "cpu" else torch.bfloat16


def _contenders(plan: Plan, section: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """All that are asked for and fit; the frozen weights of those that are LAVIS's model are there once."""
    built = tried(_OURS, lambda: Ours(section, plan.device), notes)
    if built is None:
        return {}
    ours = built[0]
    others: dict[str, Callable[[], Any]] = {
        "plain": lambda: Plain(section, plan.device, ours.model),
        "single": lambda: Single(section, plan.device, ours.model),
        "huggingface": lambda: huggingface.HuggingFace(section, ours.model, plan.device),
    }
    wanted = [name for name in others if name in plan.against and (name != "single" or "rank" in plan.what)]
    if "huggingface" in wanted and (reason := huggingface.missing()):
        wanted.remove("huggingface")
        notes.append(f"huggingface is left out: {reason}.")
    found = {name: tried(name, others[name], notes) for name in wanted}
    return {_OURS: ours, **{name: one[0] for name, one in found.items() if one is not None}}


def _compare(
    plan: Plan,
    what: str,
    contenders: Mapping[str, Any],
    work: Work,
    product: tuple[Callable[[], Any], int],
    notes: list[str],
    progress: Callable[[], Any],
) -> tuple[list[Row], float]:
    """The rows of one kind of work, and the highest speed of the matrix product that took its turn in every round."""
    actions = {name: partial(getattr(one, what), work) for name, one in contenders.items()}
    times = measure.interleaved({_PRODUCT: product[0], **actions}, plan.repeats, plan.device, progress)
    speeds = [product[1] / taken for taken in times[_PRODUCT]]
    tokens = {"train": work.tokens, "generate": len(work.prompts) * contenders[_OURS].new_tokens}.get(what)
    rows = []
    for name, action in actions.items():
        median = statistics.median(times[name])
        flops = utilisation = None
        counted = None
        if what == "train" and name == _OURS:  # unfused for it, attention needs more memory than in the rounds
            counted = tried("counting the operations", partial(measure.operations, action), notes)
        if counted is not None:
            flops = counted[0] / median
            # Within a round, so that a busy machine slows both.
            pairs = zip(times[name], speeds, strict=True)
            utilisation = statistics.median(counted[0] / taken / speed for taken, speed in pairs)
        ratio = measure.Ratio.of(times[name], times[_OURS])
        rows.append(
            Row(
                what=what,
                who=name,
                seconds=median,
                samples_per_second=len(work.prompts) / median,
                tokens_per_second=None if tokens is None else tokens / median,
                held_bytes=measure.held_memory(contenders[name].model, contenders[name].optimizer),
                peak_bytes=measure.peak_memory(action, plan.device),
                flops=flops,
                utilisation=utilisation,
                ratio=None if name == _OURS else (ratio.median, ratio.low, ratio.high),
            )
        )
    return rows, max(speeds)


def _note_ranks(chosen: Mapping[str, list[int]], notes: list[str]) -> None:
    for name, ranks in chosen.items():
        same = sum(a == b for a, b in zip(ranks, chosen[_OURS], strict=True))
        if name != _OURS:
            notes.append(f"rank: {name} chooses the same candidate for {same} of {len(ranks)} questions.")


def _loader(section: Mapping[str, Any], plan: Plan) -> Callable[[], Any]:
    """What loading a batch takes in this process: JPEGs of 640 × 480 to tensors on the device."""
    from PIL import Image

    from lavis_peft.processors.image import PeftImageProcessor

    processor = PeftImageProcessor(section["image_size"])
    noise = Image.frombytes("RGB", (640, 480), random.Random(0).randbytes(640 * 480 * 3))
    file = io.BytesIO()
    noise.resize((80, 60)).resize((640, 480)).save(file, "JPEG")

    def load() -> torch.Tensor:
        pictures = [processor(Image.open(io.BytesIO(file.getvalue())).convert("RGB")) for _ in range(plan.batch)]
        return torch.stack(pictures).to(plan.device)

    return load
