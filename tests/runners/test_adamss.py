"""A run of ADAMSS that goes on where k-means comes to other groups of rows than it began with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lavis_peft

lavis_peft.register()

from lavis_peft.cli.running import build_runner  # noqa: E402  after the plugin made LAVIS importable

theirs = pytest.importorskip("peft.tuners.adamss.layer", reason="the installed peft has no ADAMSS")

ADAMSS = ["peft_type=ADAMSS", "sublayers=[ffn]", "r=8", "num_subspaces=3", "subspace_rank=2"]
OPTIONS = ["model.llm_precision=bf16", *(f"model.adapters.llm.{each}" for each in ADAMSS)]


def run(path: Path, *options: str) -> dict[str, Tensor]:
    runner = build_runner(str(path), [*OPTIONS, *options], training=True)
    runner.train()
    return {name: p.detach() for name, p in runner.plain_model.named_parameters() if p.requires_grad}


def test_a_run_goes_on_with_the_groups_it_began_with(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_file({"train": 10}, batch_size_train=2, save_every_steps=1)
    with monkeypatch.context() as other:
        other.setattr(theirs, "clustering_Z", lambda found, count, _: (torch.arange(len(found)) % 5 % 3, count))
        whole = run(path, f"run.output_dir={path.parent / 'whole'}")
        killed = build_runner(str(path), OPTIONS, training=True)
        step, left = killed.task.train_step, iter(range(7))
        killed.task.train_step = lambda **more: (next(left), step(**more))[1]
        with pytest.raises(StopIteration):
            killed.train()
    resumed = run(path, "run.resume_ckpt_path=auto")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    fresh = run(path, f"run.output_dir={path.parent / 'fresh'}")
    assert any(value.shape != fresh[name].shape for name, value in whole.items())
