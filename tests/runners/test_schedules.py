"""The learning-rate schedules against their formulas."""

import math

import pytest
import torch

from lavis_peft.errors import ConfigError
from lavis_peft.runners.schedules import SCHEDULES, ConstantLR, LinearDecayLR, LinearWarmupCosinePerStepLR


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    return torch.optim.AdamW(groups, lr=7.0)


def rate(optim: torch.optim.Optimizer) -> float:
    first, second = (group["lr"] for group in optim.param_groups)
    assert first == second
    return first


def test_linear_decay_is_per_epoch() -> None:
    optim = optimizer()
    schedule = LinearDecayLR(optim, max_epoch=4, min_lr=1e-5, init_lr=5e-5, warmup_start_lr=1e-8, warmup_steps=1000)
    rates = []
    for epoch in range(4):
        for step in (0, 3):
            schedule.step(cur_epoch=epoch, cur_step=step)
        rates.append(rate(optim))
    assert rates == pytest.approx([5e-5, 4e-5, 3e-5, 2e-5])


def test_per_step_cosine_warms_up_over_epochs_and_ends_at_min_lr() -> None:
    optim = optimizer()
    schedule = LinearWarmupCosinePerStepLR(
        optim, max_epoch=3, min_lr=0.1, init_lr=1.0, iters_per_epoch=4, warmup_steps=6
    )
    rates = []
    for iteration in range(12):
        schedule.step(cur_epoch=iteration // 4, cur_step=iteration % 4)
        rates.append(rate(optim))
    assert rates[:6] == pytest.approx([n / 6 for n in range(1, 7)])
    assert rates[6:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)])
    assert schedule.lr_at(12) == pytest.approx(0.1)


def test_per_step_cosine_starts_where_it_is_told() -> None:
    schedule = LinearWarmupCosinePerStepLR(optimizer(), 1, 0.0, 1.0, 10, warmup_start_lr=0.5, warmup_steps=5)
    assert [schedule.lr_at(0), schedule.lr_at(4)] == pytest.approx([0.6, 1.0])


def test_a_warm_up_longer_than_the_run_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 10, but the run has 10 iterations"):
        LinearWarmupCosinePerStepLR(optimizer(), 2, 0.0, 1.0, 5, warmup_steps=10)


def test_constant() -> None:
    optim = optimizer()
    schedule = ConstantLR(optim, init_lr=1.0, warmup_start_lr=0.0, warmup_steps=4)
    seen = []
    for epoch, step in ((0, 0), (0, 2), (0, 9), (1, 0)):
        schedule.step(cur_epoch=epoch, cur_step=step)
        seen.append(rate(optim))
    assert seen == [0.0, 0.5, 1.0, 1.0]
    schedule = ConstantLR(optim, init_lr=1.0, warmup_start_lr=0.0)
    schedule.step(cur_epoch=0, cur_step=0)
    assert rate(optim) == 1.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_takes_what_lavis_runners_pass(name: str) -> None:
    optim = optimizer()
    schedule = SCHEDULES[name](
        optimizer=optim,
        max_epoch=2,
        min_lr=0.0,
        init_lr=1e-3,
        decay_rate=None,
        warmup_start_lr=-1,
        warmup_steps=0,
        iters_per_epoch=3,
    )
    schedule.step(cur_epoch=0, cur_step=0)
    assert rate(optim) == pytest.approx(1e-3)
