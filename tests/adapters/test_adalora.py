"""Budgets over real injected layers: agreement with peft, several parts, state."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from lavis_peft.adapters import inject
from lavis_peft.adapters.adalora import RankBudget
from lavis_peft.adapters.history import MOST_ROWS, by_word, is_recorded, table
from lavis_peft.adapters.spec import parse_adapters
from lavis_peft.errors import CheckpointError, ConfigError, UserError

Make = Callable[..., nn.Module]
ADALORA = {
    "peft_type": "ADALORA",
    "sublayers": ["self_attention", "cross_attention", "ffn"],
    "init_r": 6,
    "target_r": 2,
    "tinit": 3,
    "tfinal": 4,
    "deltaT": 2,
}
FAMILIES = {"qformer": "qformer", "llm": "t5"}


def adapted(parts: dict[str, nn.Module], sections: dict[str, Any], **budget: str) -> RankBudget:
    spec = parse_adapters({**sections, "train": [], **budget}, llm_family="t5")
    inject.apply(spec, parts, FAMILIES, {})
    made = inject.rank_budget(spec, parts, FAMILIES)
    assert made is not None
    return made


def batches(count: int, width: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(8, width, generator=generator), torch.randn(8, width, generator=generator)


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)


def learn(module: nn.Module, optim: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    optim.zero_grad()
    (module(batch[0]) - batch[1]).square().mean().backward()
    optim.step()


def shake(budget: RankBudget, seed: int = 0) -> None:
    """Weights and gradients as in the middle of a training."""
    generator = torch.Generator().manual_seed(seed)
    for slot in budget.slots:
        for parameter in slot.matrices:
            parameter.data = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator)


class Peft:
    """peft's allocator, driven as its AdaLoraModel drives it."""

    def __init__(self, module: nn.Module, total_step: int, **options: Any) -> None:
        self.module, self.total = module, total_step
        self.config = AdaLoraConfig(total_step=total_step, **options)
        self.allocator = RankAllocator(module, self.config, "default")
        self.pattern: dict[str, list[bool]] | None = None

    def after_step(self, step: int) -> None:
        final = self.total - self.config.tfinal
        if step > final:
            self.allocator.mask_using_rank_pattern(self.module, self.pattern)
            return
        _, pattern = self.allocator.update_and_allocate(self.module, step, force_mask=step == final)
        self.pattern = pattern or self.pattern


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tfinal": 0, "tinit": 0},
        {"deltaT": 1, "beta1": 0.5, "beta2": 0.9},
        {"deltaT": 7, "target_r": 1, "tinit": 5},
    ],
)
def test_agrees_with_peft_in_every_weight_at_every_step(options: dict[str, Any], make_qformer: Make) -> None:
    section = {**ADALORA, **options}
    ours, theirs = make_qformer(), make_qformer()
    budget = adapted({"qformer": ours}, {"qformer": section})
    adapted({"qformer": theirs}, {"qformer": section})
    theirs.load_state_dict(ours.state_dict())
    keys = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2")
    peft = Peft(theirs, 20, **{key: section[key] for key in keys if key in section})
    budget.start(20)
    first, second = optimizer(ours), optimizer(theirs)
    for step, batch in enumerate(batches(20), start=1):
        learn(ours, first, batch)
        budget.after_step()
        learn(theirs, second, batch)
        peft.after_step(step)
        for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other, msg=f"{name} at step {step}")
        if peft.pattern:
            pattern = [peft.pattern[f"{slot.name}.lora_E.default"] for slot in budget.slots]
            assert budget.ranks() == [sum(each) for each in pattern]
            assert budget.pools[0].mask.tolist() == [kept for each in pattern for kept in each]
    assert sum(budget.ranks()) == section["target_r"] * len(budget.slots)


def test_importance_of_a_triplet_by_hand() -> None:
    part = nn.Module()
    part.block = nn.Module()
    part.block.DenseReluDense = nn.Module()
    part.block.DenseReluDense.wo = nn.Linear(2, 1)
    section = {"peft_type": "ADALORA", "sublayers": ["ffn.wo"], "init_r": 2, "target_r": 1, "beta1": 0.8, "beta2": 0.5}
    budget = adapted({"llm": part}, {"llm": section})
    a, e, b = budget.slots[0].matrices
    a.data, a.grad = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    e.data, e.grad = torch.tensor([[2.0], [1.0]]), torch.tensor([[-1.0], [1.0]])
    b.data, b.grad = torch.tensor([[1.0, 4.0]]), None
    budget.start(2)
    budget.after_step()
    # After one step the mean is 0.2 s, the uncertainty 0.5 · 0.8 s, so an entry's importance is 0.08 s².
    expected = [0.08 * (4 + (1 + 4) / 2), 0.08 * (1 + (9 + 0) / 2)]
    pool = budget.pools[0]
    torch.testing.assert_close(pool.parts["llm"].scores(), torch.tensor(expected))
    budget.after_step()
    assert budget.ranks() == [1]
    assert pool.mask.tolist() == [True, False]
    assert e.flatten().tolist() == [2.0, 0.0]


def test_orthogonality_by_hand() -> None:
    part = nn.Module()
    part.block = nn.Module()
    part.block.DenseReluDense = nn.Module()
    part.block.DenseReluDense.wo = nn.Linear(2, 2)
    section = {"peft_type": "ADALORA", "sublayers": ["ffn.wo"], "init_r": 2, "target_r": 1, "orth_reg_weight": 0.3}
    budget = adapted({"llm": part}, {"llm": section})
    a, _, b = budget.slots[0].matrices
    a.data, b.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    penalty = budget.penalty()
    assert penalty.item() == pytest.approx(0.3 * (8 + 2**0.5) / 2)
    penalty.backward()
    # ‖A Aᵀ − I‖ is 8 in one entry, whose derivative by a₁₁ is 2 a₁₁ = 6.
    torch.testing.assert_close(a.grad, torch.tensor([[0.3 * 6 / 2, 0.0], [0.0, 0.0]]))


def test_parts_have_budgets_of_their_own(make_qformer: Make, make_llm: Make) -> None:
    parts = {"qformer": make_qformer(), "llm": make_llm("t5")}
    words = {"llm": {**ADALORA, "sublayers": ["attention", "ffn"], "init_r": 3, "target_r": 1, "tfinal": 6}}
    budget = adapted(parts, {"qformer": ADALORA, **words})
    budget.start(20)
    for step in range(20):
        shake(budget, step)
        budget.after_step()
    sums = by_word(((slot.part, slot.word) for slot in budget.slots), budget.ranks())
    assert sum(sums["qformer"].values()) == 2 * 32
    assert sum(sums["llm"].values()) == 1 * 24
    assert [pool.schedule.final_step for pool in budget.pools] == [16, 14]


@pytest.mark.parametrize("unit", ["rank", "parameters"])
def test_parts_compete_for_a_shared_budget(unit: str, make_qformer: Make, make_llm: Make) -> None:
    parts = {"qformer": make_qformer(), "llm": make_llm("t5")}
    section = {"qformer": ADALORA, "llm": {**ADALORA, "sublayers": ["attention", "ffn"], "target_r": 1}}
    budget = adapted(parts, section, budget="shared", budget_unit=unit)
    budget.start(20)
    for step in range(20):
        shake(budget, step)
        for slot in budget.slots:
            if slot.part == "llm":
                for parameter in slot.matrices:
                    parameter.grad *= 100
        budget.after_step()
    (pool,) = budget.pools
    dearest = max(slot.price for slot in budget.slots)
    if unit == "rank":
        assert pool.target == 2 * 32 + 1 * 24 == sum(budget.ranks())
    else:
        assert pool.target == sum((2 if slot.part == "qformer" else 1) * slot.price for slot in budget.slots)
        assert pool.target - dearest < pool.spent <= pool.target
    # The language model's gradients are far greater, so it takes what it can, which separate budgets wouldn't let it.
    ranks = by_word(((slot.part, slot.word) for slot in budget.slots), budget.ranks())
    assert sum(ranks["llm"].values()) > 2 * 24
    assert ranks["total"] == sum(budget.ranks())


def test_equal_ranks_mean_no_pruning(make_qformer: Make) -> None:
    budget = adapted({"qformer": make_qformer()}, {"qformer": {**ADALORA, "target_r": 6}})
    budget.start(20)
    for step in range(20):
        shake(budget, step)
        budget.after_step()
    assert set(budget.ranks()) == {6}
    assert budget.history.changes == []


def test_masked_values_return_between_allocations_and_never_after_the_last(make_qformer: Make) -> None:
    module = make_qformer()
    budget = adapted({"qformer": module}, {"qformer": {**ADALORA, "orth_reg_weight": 0.0}})
    budget.start(20)
    optim, used = optimizer(module), []
    for batch in batches(20):
        learn(module, optim, batch)
        budget.after_step()
        used.append(sum(int(slot.matrices[1].count_nonzero()) for slot in budget.slots))
    assert used[3] < used[4] > used[5]
    assert set(used[15:]) == {2 * 32}


def test_a_skipped_step_is_counted_and_not_looked_at(make_qformer: Make) -> None:
    budget = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    budget.start(20)
    shake(budget)
    budget.after_step()
    before = [tensor.clone() for tensor in budget.pools[0].parts["qformer"].mean]
    for slot in budget.slots:
        slot.matrices[0].grad.fill_(float("nan"))
    for _ in range(19):
        budget.after_step(made=False)
    assert all(torch.equal(a, b) for a, b in zip(before, budget.pools[0].parts["qformer"].mean, strict=True))
    assert sum(budget.ranks()) == 2 * 32


def test_finishing_early_leaves_the_target(make_qformer: Make) -> None:
    budget = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    budget.start(20)
    shake(budget)
    budget.after_step()
    assert budget.finish() is True
    assert sum(budget.ranks()) == 2 * 32
    assert sum(int(slot.matrices[1].count_nonzero()) for slot in budget.slots) == 2 * 32
    assert budget.finish() is False


def saved(budget: RankBudget) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(budget.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [1, 5, 6, 16, 19])
def test_state_goes_on_exactly_where_it_was(stop: int, make_qformer: Make) -> None:
    first, second = (adapted({"qformer": make_qformer()}, {"qformer": ADALORA}) for _ in range(2))
    first.start(20)
    for step in range(20):
        if step == stop:
            second.load_state_dict(saved(first))
            for one, other in zip(first.slots, second.slots, strict=True):
                for source, target in zip(one.matrices, other.matrices, strict=True):
                    target.data = source.detach().clone()
            second.start(20, resumed=True)
        for budget in (first, second) if step >= stop else (first,):
            generator = torch.Generator().manual_seed(step)
            for slot in budget.slots:
                for parameter in slot.matrices:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
                    parameter.data -= 0.1 * parameter.grad
            budget.after_step()
    assert second.ranks() == first.ranks()
    assert second.as_history() == first.as_history()
    for one, other in zip(first.slots, second.slots, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.matrices, other.matrices, strict=True))


def test_ranknum_is_restored(make_qformer: Make) -> None:
    first, second = (adapted({"qformer": make_qformer()}, {"qformer": ADALORA}) for _ in range(2))
    first.slots[3].ranknum.data.fill_(5.0)
    second.load_state_dict(saved(first))
    assert [float(slot.ranknum) for slot in second.slots[2:5]] == [6.0, 5.0, 6.0]


def test_a_new_run_forgets_what_was_loaded(make_qformer: Make) -> None:
    first, second = (adapted({"qformer": make_qformer()}, {"qformer": ADALORA}) for _ in range(2))
    first.start(20)
    shake(first)
    for _ in range(20):
        first.after_step()
    second.load_state_dict(saved(first))
    assert sum(second.ranks()) == 2 * 32
    second.start(30)
    assert (second.steps_done, set(second.ranks()), second.history.changes) == (0, {6}, [])


def test_state_of_other_layers_is_refused(make_qformer: Make) -> None:
    first = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    for changed in ({"sublayers": ["ffn"]}, {"init_r": 5}):
        second = adapted({"qformer": make_qformer()}, {"qformer": {**ADALORA, **changed}})
        with pytest.raises(CheckpointError, match="of other layers, other ranks"):
            second.load_state_dict(saved(first))
    state = saved(first)
    state["_extra_state"]["version"] = 99
    with pytest.raises(CheckpointError, match="version 99"):
        first.load_state_dict(state)


def test_a_run_is_resumed_with_what_it_began_with(make_qformer: Make) -> None:
    first = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    first.start(20)
    for changed, total in (({}, 40), ({"target_r": 3}, 20), ({"beta1": 0.5}, 20), ({"deltaT": 3}, 20)):
        second = adapted({"qformer": make_qformer()}, {"qformer": {**ADALORA, **changed}})
        second.load_state_dict(saved(first))
        with pytest.raises(ConfigError, match="a run is resumed with what it began with"):
            second.start(total, resumed=True)


def test_without_a_run_training_stops(make_qformer: Make) -> None:
    budget = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    with pytest.raises(UserError, match=r"ranks can't be allocated.*runner_peft"):
        budget.check_pass()


def test_history_reads_back_as_a_table(make_qformer: Make) -> None:
    budget = adapted({"qformer": make_qformer()}, {"qformer": ADALORA})
    budget.start(20)
    seen = {0: budget.ranks()}
    for step in range(1, 21):
        shake(budget, step)
        budget.after_step()
        if budget.ranks() != seen[max(seen)]:
            seen[step] = budget.ranks()
    history = budget.as_history()
    assert table(history) == (list(seen), list(seen.values()))
    assert history["ranks"] == budget.ranks()
    kept = [value for value, rank in zip(history["importance_kept"], history["ranks"], strict=True) if rank]
    every = [value for value, rank in zip(history["importance"], history["ranks"], strict=True) if rank]
    assert all(of_kept >= of_all > 0 for of_kept, of_all in zip(kept, every, strict=True))
    assert history["layers"][0] == {
        "part": "qformer",
        "name": "encoder.layer.0.attention.self.query",
        "word": "self_attention",
        "layer": 0,
        "init_r": 6,
        "price": 32,
    }


def test_a_long_run_records_a_part_of_its_allocations() -> None:
    falling = 10 * MOST_ROWS
    rows = [step for step in range(1, falling) if is_recorded(step, 1, falling)]
    assert len(rows) <= MOST_ROWS
    assert len(rows) > MOST_ROWS / 2
    assert all(is_recorded(step, 10, 1000) for step in range(10, 1000, 10))
