"""Whole checkpoint files with a changed content: each is refused, or goes into the model as the file has it."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.adapters.digest import ENTRY, digest
from lavis_peft.errors import CheckpointError, UserError

SEED = 2023
#: Mutations of each kind, with the digest of before and again with none.
EACH = 25

Place = tuple[Any, Any]
Mutation = Callable[[dict[str, Any], random.Random], None]


def _places(value: Any) -> list[Place]:
    """Every container in a checkpoint with each of its keys or positions."""
    found: list[Place] = []
    if isinstance(value, dict):
        inside: list[Any] = list(value)
    elif isinstance(value, list):
        inside = list(range(len(value)))
    else:
        return []
    for key in inside:
        found += [(value, key), *_places(value[key])]
    return found


def _pick(content: dict[str, Any], draw: random.Random, kind: type = object) -> Place:
    """A random place, at every depth as likely: the many tensors of the model are not all there is."""
    roots = [key for key in content if key != ENTRY]
    while True:
        key = draw.choice(roots)
        places = [(content, key), *_places(content[key])]
        fitting = [place for place in places if isinstance(place[0][place[1]], kind)]
        if fitting:
            return draw.choice(fitting)


def _drop(content: dict[str, Any], draw: random.Random) -> None:
    holder, key = _pick(content, draw)
    del holder[key]


def _rename(content: dict[str, Any], draw: random.Random) -> None:
    while True:
        holder, key = _pick(content, draw)
        if isinstance(holder, dict):
            break
    other = draw.choice((f"{key}x", str(key)[1:], str(key).upper(), 7, str(key).replace(".", "_")))
    holder[other] = holder.pop(key)


def _foreign(content: dict[str, Any], draw: random.Random) -> None:
    holder = draw.choice([content, content["model"], content["optimizer"], content["progress"], content["config"]])
    holder[draw.choice(("other", "visual_encoder.weight", "lora_A"))] = draw.choice((torch.zeros(2), 1, "x", None))


def _swap(content: dict[str, Any], draw: random.Random) -> None:
    (first, one), (second, two) = _pick(content, draw, torch.Tensor), _pick(content, draw, torch.Tensor)
    first[one], second[two] = second[two], first[one]


def _retype_tensor(content: dict[str, Any], draw: random.Random) -> None:
    holder, key = _pick(content, draw, torch.Tensor)
    tensor = holder[key]
    ways: list[Callable[[], Any]] = [
        lambda: tensor.half(),
        lambda: tensor.double(),
        lambda: tensor.to(torch.int32),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.tolist(),
        lambda: tensor.unsqueeze(0),
        lambda: tensor.flatten()[:1],
        lambda: tensor.t() if tensor.dim() == 2 else tensor.reshape(-1),
        lambda: torch.full_like(tensor.float(), float("nan")),
        lambda: str(tensor),
        lambda: None,
    ]
    holder[key] = draw.choice(ways)()


def _retype_entry(content: dict[str, Any], draw: random.Random) -> None:
    holder, key = _pick(content, draw)
    others = (None, True, -1, 0, 3, 1.5, float("nan"), 10**30, "x", "", b"x", [], [1], {}, {"a": 1}, (1, 2))
    holder[key] = draw.choice((*others, torch.zeros(2), torch.tensor(1)))


def _another_model(content: dict[str, Any], draw: random.Random) -> None:
    header = content["lavis_peft"]
    adapter = header["adapters"]["qformer"]
    changes: list[Callable[[], Any]] = [
        lambda: header.update(arch="blip2_vicuna_instruct_peft"),
        lambda: header.update(model_type="flant5xl"),
        lambda: header.update(adapters={}),
        lambda: header["adapters"].update(llm=dict(adapter)),
        lambda: adapter.update(init_r=8),
        lambda: adapter.update(lora_alpha=16),
        lambda: adapter.update(peft_type="LORA"),
        lambda: adapter.update(sublayers=["ffn"]),
    ]
    draw.choice(changes)()


MUTATIONS = (_drop, _rename, _foreign, _swap, _retype_tensor, _retype_entry, _another_model)


def _same(own: Any, saved: Any) -> bool:
    """Equal to the bit, once a tensor of another precision is in the model's."""
    if isinstance(own, torch.Tensor):
        saved = torch.as_tensor(saved).to(own.dtype)
        return own.shape == saved.shape and torch.equal(own.nan_to_num(), saved.nan_to_num())
    if isinstance(own, dict):
        return own.keys() == saved.keys() and all(_same(value, saved[key]) for key, value in own.items())
    if isinstance(own, list):
        return len(own) == len(saved) and all(map(_same, own, saved))
    return own == saved


def _same_as_file(runner: Any, found: dict[str, Any]) -> bool:
    """Whether the run's weights, budget, optimizer and progress are what a file says."""
    state = runner.plain_model.state_dict()
    averages = runner.optimizer.state_dict()["state"]
    return (
        all(_same(state[key], value) for key, value in found["model"].items())
        and all(_same(averages[number], value) for number, value in found["optimizer"]["state"].items())
        and all(getattr(runner.progress, key) == value for key, value in found.get("progress", {}).items())
    )


def _refusal(read: Callable[[], Any], kind: type[UserError]) -> str:
    try:
        read()
    except kind as error:
        return str(error) or "?"
    return ""


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda function: function.__name__.strip("_"))
def test_changed_content(
    mutate: Callable[[dict[str, Any], random.Random], None], trained_run: Any, tmp_path: Path
) -> None:
    from lavis_peft.runners.checkpoints import read_run_checkpoint

    runner, draw = trained_run.runner, random.Random(f"{SEED} {mutate.__name__}")
    whole = torch.load(trained_run.checkpoint, weights_only=True)
    expected, path = digest(read_checkpoint(trained_run.checkpoint)), tmp_path / "checkpoint_1.pth"
    for number in range(EACH):
        content = copy.deepcopy(whole)
        mutate(content, draw)
        torch.save(content, path)
        refusal = _refusal(lambda: read_checkpoint(path), CheckpointError)
        assert refusal or digest(read_checkpoint(path)) == expected, f"mutation {number} was taken for whole"
        # Again as a file of somebody else's, which has no digest: what is in it has to be checked itself.
        content.pop(ENTRY, None)
        torch.save(content, path)
        refusal = _refusal(lambda: runner._restore(read_run_checkpoint(str(path)), str(path)), UserError)
        assert refusal or _same_as_file(runner, content), f"mutation {number} was loaded as something else"
        runner._restore(read_run_checkpoint(str(trained_run.checkpoint)), "the whole one")
        assert _same_as_file(runner, whole)
