"""AdaLoRA through RunnerPeft, on a small random model and a few pictures."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lavis_peft
from lavis_peft.adapters.checkpoint import read_checkpoint
from lavis_peft.errors import ConfigError, UserError

lavis_peft.register()

from lavis_peft.cli.running import build_runner  # noqa: E402  after the plugin made LAVIS importable

RunFile = Callable[..., Path]
ADALORA = {
    "peft_type": "ADALORA",
    "sublayers": ["self_attention", "cross_attention", "ffn"],
    "init_r": 4,
    "target_r": 2,
    "tinit": 1,
    "tfinal": 0.25,
    "deltaT": 2,
    "lora_alpha": 8,
}
# Query, value and four FFN layers in each of four layers, cross-attention in every second.
LAYERS = 4 * 6 + 2 * 4


@pytest.fixture
def qformer_lora() -> dict[str, Any]:
    """In place of the LoRA that `run_file` writes into the config; a test may change it first."""
    return {"qformer": dict(ADALORA)}


def run(path: Path, *options: str) -> Any:
    runner = build_runner(str(path), list(options), training=True)
    runner.train()
    return runner


def last_checkpoint(runner: Any) -> dict[str, Any]:
    newest = max(runner.output_dir.glob("checkpoint_[0-9]*.pth"), key=lambda path: int(path.stem.split("_")[1]))
    return read_checkpoint(newest)


def check_pruned(model: dict[str, Any], ranks: int = 2 * LAYERS) -> None:
    """Exactly so many triplets are in the mask, and everything outside of it is 0."""
    mask = model["adalora._extra_state"]["pools"][0]["mask"]
    values = torch.cat([value.flatten() for key, value in model.items() if ".lora_E." in key])
    assert int(mask.sum()) == ranks
    assert not values[~mask].any()
    # The text branch of the last layer is never read, so its values stay at their start, 0.
    assert int((values != 0).sum()) >= ranks - 8


def final(runner: Any) -> dict[str, torch.Tensor]:
    return {key: value for key, value in runner.plain_model.state_dict().items() if not key.endswith("_extra_state")}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_budget_falls_to_exactly_the_target(run_file: RunFile) -> None:
    runner = run(run_file(max_epoch=4, valid_splits=None, test_splits=None))
    budget = runner.plain_model.adalora
    # Three iterations an epoch: twelve steps, of which the last three are final.
    assert (budget.steps_done, budget.pools[0].schedule.total_step) == (12, 12)
    assert sum(budget.ranks()) == 2 * LAYERS
    check_pruned(last_checkpoint(runner)["model"])
    history = json.loads((runner.result_dir / "adalora_history.json").read_text())
    assert [step for step, *_ in history["changes"]] == sorted(step for step, *_ in history["changes"])
    assert {step for step, *_ in history["changes"]} <= {2, 4, 6, 8, 9}
    assert history["ranks"] == budget.ranks()
    assert (history["pools"][0]["initial"], history["pools"][0]["target"]) == (4 * LAYERS, 2 * LAYERS)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(run_file: RunFile) -> None:
    path = run_file(max_epoch=4, valid_splits=None, test_splits=None, save_freq=1)
    whole = run(path)
    for epoch in range(3):
        resumed = run(path, f"run.resume_ckpt_path={whole.output_dir / f'checkpoint_{epoch}.pth'}")
        assert equal(final(resumed), final(whole))
        assert resumed.plain_model.adalora.as_history() == whole.plain_model.adalora.as_history()


@pytest.mark.parametrize("kind", [["run.accum_grad_iters=2"], ["run.runner=runner_peft_iter"]])
def test_a_run_interrupted_within_an_epoch(kind: list[str], run_file: RunFile) -> None:
    length = (
        {"max_epoch": 2} if "accum" in kind[0] else {"max_epoch": None, "max_iters": 10, "iters_per_inner_epoch": 5}
    )
    path = run_file({"train": 10}, batch_size_train=2, valid_splits=None, save_every_steps=1, **length)
    # Dropout, in the Q-Former and in LoRA's triplets, so that the generators matter.
    options = [*kind, "model.qformer.hidden_dropout_prob=0.1", "model.adapters.qformer.lora_dropout=0.1"]
    whole = run(path, *options, f"run.output_dir={path.parent / 'whole'}")
    killed = build_runner(str(path), options, training=True)
    step, left = killed.task.train_step, iter(range(8))
    killed.task.train_step = lambda **more: (next(left), step(**more))[1]
    with pytest.raises(StopIteration):
        killed.train()
    assert re.fullmatch(r"checkpoint_1_\d\.pth", killed._newest.name)
    resumed = run(path, *options, "run.resume_ckpt_path=auto")
    assert equal(final(resumed), final(whole))
    assert resumed.plain_model.adalora.as_history() == whole.plain_model.adalora.as_history()
    assert log_of(resumed) == log_of(whole)


def log_of(runner: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (runner.output_dir / "log.txt").read_text().splitlines()]
    return [{key: line[key] for key in line if "seconds" not in key} for line in lines if "config" not in line]


def test_a_saved_model_gives_the_same_scores(run_file: RunFile) -> None:
    path = run_file(max_epoch=2, valid_splits=None, test_splits=None)
    runner = run(path)
    saved = runner.output_dir / "checkpoint_1.pth"
    again = build_runner(
        str(path), ["model.load_finetuned=true", f"model.finetuned={saved}", "run.test_splits=[test]"], training=False
    )
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = (image, ["what color ?"] * 3, [["red", "blue"]] * 3)
    first, second = (r.plain_model.eval().score_candidates(*asked) for r in (runner, again))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert again.plain_model.adalora.ranks() == runner.plain_model.adalora.ranks()


def test_only_models_at_their_target_are_the_best(run_file: RunFile) -> None:
    runner = run(run_file(max_epoch=4, early_stopping=1))
    best = read_checkpoint(runner.output_dir / "checkpoint_best.pth")
    assert best["epoch"] in (2, 3)
    check_pruned(best["model"])
    lines = [json.loads(line) for line in (runner.output_dir / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "train_loss" in line][:3] == [0, 1, 2]


def test_schedules_that_do_not_fit_the_run_are_refused_before_it_trains(
    run_file: RunFile, qformer_lora: dict[str, Any]
) -> None:
    qformer_lora["qformer"] |= {"tinit": 5, "tfinal": 1}
    path = run_file(max_epoch=2)
    runner = build_runner(str(path), [], training=True)
    with pytest.raises(
        ConfigError, match=r"qformer: tinit=5 and tfinal=1 are 5 and 1 steps, .* only 6 optimizer steps"
    ):
        runner.train()
    assert not list(runner.output_dir.glob("*.pth"))


def test_a_run_is_resumed_with_its_own_length(run_file: RunFile) -> None:
    path = run_file(max_epoch=3, valid_splits=None, test_splits=None, save_freq=1)
    runner = run(path)
    options = ["run.max_epoch=5", f"run.resume_ckpt_path={runner.output_dir / 'checkpoint_1.pth'}"]
    with pytest.raises(ConfigError, match=r"run\.max_epoch was 3 and is 5"):
        run(path, *options)
    with pytest.raises(ConfigError, match="the budget falls over the whole run"):
        run(path, *options, "run.allow_config_change=run.max_epoch")


def test_accumulation_and_left_over_iterations(run_file: RunFile) -> None:
    # Three iterations an epoch, two to a step: one step an epoch, and one iteration left over.
    runner = run(run_file(max_epoch=6, accum_grad_iters=2, valid_splits=None, test_splits=None))
    assert runner.plain_model.adalora.steps_done == 6
    check_pruned(last_checkpoint(runner)["model"])


def test_a_runner_that_does_not_allocate_is_stopped_at_once(run_file: RunFile) -> None:
    runner = build_runner(str(run_file()), [], training=True)
    model = runner.plain_model.train()
    samples = {"image": torch.zeros(1, 3, 32, 32), "text_input": ["red ?"], "text_output": ["red"]}
    with pytest.raises(UserError, match=r"ADALORA: ranks can't be allocated.*runner_peft"):
        model(samples)
    with torch.no_grad():
        assert model(samples)["loss"].isfinite()


def test_an_optimizer_whose_steps_are_not_seen_is_noticed(run_file: RunFile) -> None:
    runner = build_runner(str(run_file()), [], training=True)
    model = runner.plain_model.train()
    model.adalora.start(10)
    samples = {"image": torch.zeros(1, 3, 32, 32), "text_input": ["red ?"], "text_output": ["red"]}
    model(samples)
    model(samples)
    with pytest.raises(UserError, match="nothing tells the budget of the optimizer's steps"):
        model(samples)


class Skipping:
    """Makes a loss scaler for the CPU, and gradients that aren't finite at chosen iterations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runner: Any, iterations: set[int]) -> None:
        from lavis_peft.runners.allocation import StepScaler

        self.seen = 0
        scaler = StepScaler("cpu", init_scale=4.0)
        monkeypatch.setattr(type(runner), "scaler", property(lambda _: scaler))

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return gradient * float("inf") if self.seen - 1 in iterations else gradient

        runner.plain_model.query_tokens.register_hook(spoil)


@pytest.mark.parametrize("skipped", [{0, 3}, {8}, {11}])
def test_skipped_steps_count_and_the_last_allocation_comes(
    skipped: set[int], run_file: RunFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build_runner(str(run_file(max_epoch=4, valid_splits=None, test_splits=None)), [], training=True)
    Skipping(monkeypatch, runner, skipped)
    updates = []
    triplets = runner.plain_model.adalora.pools[0].parts["qformer"]
    update = triplets.update
    monkeypatch.setattr(triplets, "update", lambda: updates.append(1) or update())
    runner.train()
    budget = runner.plain_model.adalora
    assert budget.steps_done == 12
    # Importance is taken in before step 9, the last allocation; a skipped step's isn't.
    assert len(updates) == 8 - len({step for step in skipped if step < 8})
    check_pruned(last_checkpoint(runner)["model"])
    assert all(score.isfinite().all() for score in (budget.pools[0].scores,))


def test_scalars_and_history(run_file: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = build_runner(str(run_file(max_epoch=4, valid_splits=None, test_splits=None)), [], training=True)
    told: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(
        runner.log, "scalars", lambda group, values, step: told.append((step, values)) if group == "adalora" else None
    )
    runner.train()
    assert [step for step, _ in told] == [0, 2, 4, 6, 8, 9]
    assert told[0][1] == {
        "total": 128,
        "qformer": {"self_attention": 32, "cross_attention": 32, "ffn.query": 32, "ffn.text": 32},
    }
    assert told[-1][1]["total"] == 64 == sum(told[-1][1]["qformer"].values())


def test_the_loss_of_training_has_the_orthogonality_term(run_file: RunFile) -> None:
    model = build_runner(str(run_file()), [], training=True).plain_model
    model.adalora.start(10)
    samples = {"image": torch.zeros(1, 3, 32, 32), "text_input": ["red ?"], "text_output": ["red"]}
    with_term = model.train()(samples)["loss"]
    # No dropout in this model, so evaluation differs by the term alone.
    without = model.eval()(samples)["loss"]
    assert model.adalora.penalty() > 0.1
    torch.testing.assert_close(with_term - without, model.adalora.penalty())
