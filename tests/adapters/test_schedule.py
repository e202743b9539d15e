"""The phases and the cubic fall, by numbers worked out on paper."""

import pytest

from lavis_peft.adapters.schedule import Schedule, in_steps, problems_of_ranks_and_phases, schedule_for

# Twelve falling steps, from after step 3 to step 15.
SCHEDULE = Schedule(total_step=20, tinit=3, tfinal=5, deltaT=2)


@pytest.mark.parametrize(
    ("step", "budget"),
    [
        (1, 100),
        (3, 100),
        (4, 81),  # 20 + 80 · (11/12)³ = 81.6
        (6, 53),  # 20 + 80 · (3/4)³ = 53.75
        (9, 30),  # 20 + 80 · (1/2)³
        (12, 21),  # 20 + 80 · (1/4)³ = 21.25
        (14, 20),  # 20 + 80 · (1/12)³ = 20.05
        (15, 20),
        (20, 20),
    ],
)
def test_the_budget_falls_as_a_cube(step: int, budget: int) -> None:
    assert SCHEDULE.budget(step, 100, 20) == budget


def test_allocations_are_every_second_step_and_the_last() -> None:
    assert [step for step in range(1, 21) if SCHEDULE.allocates(step)] == [4, 6, 8, 10, 12, 14, 15]
    assert [step for step in range(1, 21) if SCHEDULE.is_fixed(step)] == [15, 16, 17, 18, 19, 20]


def test_without_a_final_phase_the_last_step_allocates() -> None:
    schedule = Schedule(total_step=7, tinit=0, tfinal=0, deltaT=100)
    assert [step for step in range(1, 8) if schedule.allocates(step)] == [7]
    assert (schedule.budget(1, 70, 7), schedule.budget(7, 70, 7)) == (46, 7)  # 7 + 63 · (6/7)³ = 46.67


def test_an_equal_budget_never_moves() -> None:
    assert {SCHEDULE.budget(step, 64, 64) for step in range(1, 21)} == {64}


@pytest.mark.parametrize(("value", "steps"), [(0, 0), (7, 7), (0.0, 0), (0.1, 20), (0.29, 58), (0.999, 200)])
def test_phases_are_steps_or_fractions(value: object, steps: int) -> None:
    assert in_steps(value, 200) == steps


def test_the_log_names_each_phase() -> None:
    said = SCHEDULE.describe()
    assert said == "steps 1-3 full budget, 4-15 falling (every 2 steps), 16-20 target"


def test_a_run_too_short_for_its_phases() -> None:
    options = {"tinit": 0.5, "tfinal": 5, "deltaT": 1}
    (problem,) = schedule_for(options, 10, "model.adapters.llm")[1]
    assert problem.startswith("model.adapters.llm: tinit=0.5 and tfinal=5 are 5 and 5 steps, but the run has only 10")
    assert schedule_for(options, 12, "x") == (Schedule(12, 6, 5, 1), [])


def test_what_no_run_can_mend() -> None:
    options = {"init_r": 4, "target_r": 6, "tinit": 0.5, "tfinal": 0.5}
    first, second = problems_of_ranks_and_phases(options, "here")
    assert first == "here.target_r: 6 is more than init_r=4; ranks can only be taken away"
    assert second.startswith("here: tinit and tfinal are the whole run")
    assert problems_of_ranks_and_phases({**options, "target_r": 4, "tinit": 3}, "here") == []
