"""Mixed precision: what it computes in, whether a loss scaler is made, and that nothing else changes."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lavis_peft
from lavis_peft.errors import ConfigError

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402  after the plugin made LAVIS importable

from lavis_peft.cli.running import build_runner  # noqa: E402
from lavis_peft.runners.comparison import config_differences  # noqa: E402
from lavis_peft.runners.precision import check_device, mixed_dtype, take_precision  # noqa: E402
from lavis_peft.runners.spec import parse_run  # noqa: E402

BF16 = ["run.amp=true", "run.amp_dtype=bf16"]


@pytest.mark.parametrize(
    ("amp", "name", "device", "dtype"),
    [
        (False, "bf16", "cuda", None),
        (True, "fp16", "cuda:1", torch.float16),
        (True, "fp16", "cpu", None),
        (True, "bf16", "cuda", torch.bfloat16),
        (True, "bf16", "cpu", torch.bfloat16),
    ],
)
def test_what_the_loop_computes_in(amp: bool, name: str, device: str, dtype: torch.dtype | None) -> None:
    assert mixed_dtype(amp, name, device) is dtype


def test_a_wrong_word_is_named_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"run\.amp_dtype: must be fp16 or bf16, found 'float16'"):
        parse_run({"task": "t", "amp_dtype": "float16"})


def test_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    check_device("fp16", "cuda")
    check_device("bf16", "cpu")
    with pytest.raises(ConfigError, match=r"amp_dtype: bf16, but Old GPU has no bfloat16 .*use fp16"):
        check_device("bf16", "cuda:0")
    assert asked == [False]  # a GPU that only emulates it would be slower with it


def test_a_model_that_would_go_on_in_float16() -> None:
    class Foreign(nn.Module):
        def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> Any:
            return torch.autocast("cuda", dtype=dtype)

    take_precision(Foreign(), True, "fp16", "cpu")
    take_precision(nn.Linear(1, 1), True, "bf16", "cpu")
    with pytest.raises(ConfigError, match=r"Foreign would compute in float16"):
        take_precision(Foreign(), True, "bf16", "cpu")


def test_a_resumed_run_keeps_it() -> None:
    before = {"run": {"task": "t", "amp": True}}
    assert config_differences(before, {"run": {**before["run"], "amp_dtype": "fp16"}}) == {}
    assert config_differences(before, {"run": {**before["run"], "amp_dtype": "bf16"}}) == {
        "run.amp_dtype": ("fp16", "bf16")
    }


def _taken(model: nn.Module) -> torch.Tensor:
    """The gradients as one vector; they are cleared."""
    found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(found)


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("held_in", ["fp32", "bf16", "fp16"])
def test_every_autocast_of_the_model_follows(
    held_in: str, family: str, model_section: Callable[..., dict[str, Any]], qformer_lora: dict[str, Any]
) -> None:
    """On a CPU, LAVIS's float16 would be seen in the products' outputs."""
    section = model_section(family, adapters=qformer_lora, llm_precision=held_in, vit_precision=held_in)
    torch.manual_seed(0)
    model = registry.get_model_class(section["arch"]).from_config(section)
    for parameter in model.llm.parameters():  # else T5's attention is so sharp that any rounding turns its gradients
        if parameter.dim() > 1:
            parameter.data.mul_(0.3)
    samples = {
        "image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "text_input": ["what shape is it ?", "yes"],
        "text_output": ["circle", "a red square"],
    }
    plain = model.train()(samples)["loss"]
    plain.backward()
    gradients = _taken(model)
    found: dict[str, set[torch.dtype]] = {}
    for name, part in model.all_parts().items():
        for layer in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda *given, name=name: found.setdefault(name, set()).add(given[2].dtype))
    take_precision(model, True, "bf16", "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(samples)["loss"]
    mixed.backward()
    assert found.keys() == {"vision", "qformer", "projection", "llm"}
    # T5 asks for its last feed-forward product in the precision of its weights.
    assert set().union(*found.values()) <= ({torch.bfloat16, torch.float32} if family == "t5" else {torch.bfloat16})
    assert all(torch.bfloat16 in dtypes for dtypes in found.values())
    assert torch.cosine_similarity(gradients, _taken(model), dim=0) > 0.99
    assert mixed.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.03, atol=0.03)
    model.eval()
    with torch.no_grad():
        scores = model.score_candidates(samples["image"], samples["text_input"], [["red", "blue square"]] * 2)
    assert all(score.isfinite().all() for score in scores)


def run(path: Path, *options: str) -> Any:
    runner = build_runner(str(path), list(options), training=True)
    runner.train()
    return runner


def trained(runner: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in runner.plain_model.named_parameters() if p.requires_grad}


def losses(runner: Any) -> list[float]:
    lines = [json.loads(line) for line in (runner.output_dir / "log.txt").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


def test_a_bf16_run_on_a_cpu(run_file: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    path = run_file(max_epoch=1, init_lr=1e-4, test_splits=None)
    plain, mixed = run(path, f"run.output_dir={path.parent / 'plain'}"), run(path, *BF16)
    assert mixed.scaler is None
    assert "full precision" not in caplog.text
    assert losses(mixed) != losses(plain)
    assert losses(mixed) == pytest.approx(
        losses(plain), rel=0.1
    )  # a mean over few samples, with weights that are large
    assert {value.dtype for value in trained(mixed).values()} == {torch.float32}


@pytest.mark.parametrize("llm", [[], ["model.adapters.llm.peft_type=LN_TUNING", "model.llm_precision=bf16"]])
def test_an_interrupted_bf16_run_ends_like_an_uninterrupted_one(run_file: Callable[..., Path], llm: list[str]) -> None:
    path = run_file({"train": 10}, batch_size_train=2, valid_splits=None, save_every_steps=1)
    options = [*BF16, *llm, "model.qformer.hidden_dropout_prob=0.1"]
    whole = run(path, *options, f"run.output_dir={path.parent / 'whole'}")
    killed = build_runner(str(path), options, training=True)
    step, left = killed.task.train_step, iter(range(8))
    killed.task.train_step = lambda **more: (next(left), step(**more))[1]
    with pytest.raises(StopIteration):
        killed.train()
    resumed = run(path, *options, "run.resume_ckpt_path=auto")
    assert losses(resumed) == losses(whole)
    found = trained(resumed)
    assert all(torch.equal(value, found[name]) for name, value in trained(whole).items())


def test_a_loop_of_a_task_s_own_knows_float16_only(run_file: Callable[..., Path]) -> None:
    runner = build_runner(str(run_file()), BF16, training=True)

    class Own(type(runner.task)):
        def train_epoch(self, *arguments: Any, **more: Any) -> Any:
            raise AssertionError("not asked")

    runner.task = Own()
    with pytest.raises(ConfigError, match=r"run\.amp_dtype: bf16, but Own trains with a loop of its own"):
        runner.train()


def test_predict_and_held_out_follow_it_too(run_file: Callable[..., Path]) -> None:
    from lavis_peft.predict.loading import open_source
    from lavis_peft.runners.held_out import HeldOut

    path = str(run_file())
    plain, mixed = (open_source(path, options, None, None, "cpu", {}).model() for options in ([], BF16))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = (image, ["what color ?"] * 2, [["red", "blue"]] * 2)
    seen: list[torch.dtype] = []
    mixed.projection.register_forward_pre_hook(lambda *_: seen.append(mixed.maybe_autocast().fast_dtype))
    assert type(plain.maybe_autocast()) is contextlib.nullcontext
    mixed.score_candidates(*asked)
    HeldOut(path, BF16).score(plain)
    assert seen == [torch.bfloat16]
    assert plain.maybe_autocast().fast_dtype is torch.bfloat16
