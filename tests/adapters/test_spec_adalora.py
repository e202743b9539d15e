"""The settings of `peft_type: ADALORA`: what is refused, and that everything is said at once."""

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig
from torch import nn

from lavis_peft.adapters.identity import differences, header
from lavis_peft.adapters.inject import apply, rank_budget
from lavis_peft.adapters.spec import AdaptersSpec, parse_adapters, peft_config
from lavis_peft.errors import ConfigError

ADALORA = {"peft_type": "ADALORA", "sublayers": ["ffn"]}


def parse(**section: Any) -> AdaptersSpec:
    return parse_adapters(section, llm_family="t5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 8}, "qformer.r: can't be set here: AdaLoRA goes from `init_r` to `target_r`"),
        ({"total_step": 100}, "qformer.total_step: can't be set here: the run computes it"),
        ({"rank_pattern": {"a": 1}}, "qformer.rank_pattern: can't be set here: in AdaLoRA it is what training finds"),
        ({"use_dora": True}, "qformer.use_dora: can't be set here: AdaLoRA doesn't have it"),
        ({"init_r": 4, "target_r": 6}, "qformer.target_r: 6 is more than init_r=4"),
        ({"init_r": 4}, "qformer.target_r: 8 is more than init_r=4"),
        ({"init_r": 0}, "qformer.init_r: found 0; give a whole number above 0"),
        ({"tinit": 1.0}, "qformer.tinit: found 1.0; give a whole number of steps, or a fraction of all steps"),
        ({"tinit": -1}, "qformer.tinit: found -1; give a whole number of steps"),
        ({"tfinal": True}, "qformer.tfinal: found True; give a whole number of steps"),
        ({"tinit": 0.4, "tfinal": 0.6}, "qformer: tinit and tfinal are the whole run together"),
        ({"deltaT": 0}, "qformer.deltaT: found 0; give a whole number above 0"),
        ({"beta1": 1.0}, "qformer.beta1: found 1.0; give a number above 0 and below 1"),
        ({"orth_reg_weight": -0.1}, "qformer.orth_reg_weight: found -0.1; give a number, 0 or above"),
        ({"target_rank": 2}, "qformer.target_rank: unknown key (did you mean 'target_r'?)"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(qformer={**ADALORA, **options})
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(qformer={**ADALORA, "r": 4, "beta2": 2, "deltaT": 0.5}, llm={**ADALORA, "init_r": 1, "target_r": 2})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"budget": "sahred"}, "budget: found 'sahred'; allowed: separate, shared"),
        ({"budget_unit": "weights"}, "budget_unit: found 'weights'; allowed: rank, parameters"),
        ({"qformer": ADALORA, "budget": "shared"}, "budget: shared needs `peft_type: ADALORA` on qformer and on llm"),
        ({"budget_unit": "parameters"}, "budget_unit: is for `peft_type: ADALORA`, which no part has"),
        (
            {"qformer": {**ADALORA, "tinit": 0.1}, "llm": ADALORA, "budget": "shared"},
            "budget: shared needs the same tinit in all parts; found qformer.tinit=0.1, llm.tinit=0",
        ),
    ],
)
def test_budgets_that_make_no_sense(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**section)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


def test_shared_parts_may_differ_in_rank() -> None:
    spec = parse(
        qformer=ADALORA, llm={**ADALORA, "init_r": 6, "target_r": 2}, budget="shared", budget_unit="parameters"
    )
    assert (spec.budget, spec.budget_unit) == ("shared", "parameters")
    assert parse_adapters(spec.as_dict(), llm_family="t5") == spec
    assert "budget" not in parse(qformer=ADALORA).as_dict()


def test_peft_gets_what_it_needs_and_never_a_schedule() -> None:
    spec = parse(qformer={**ADALORA, "init_r": 10, "tinit": 0.3, "tfinal": 500, "beta1": 0.7}).qformer
    config = peft_config(spec, ["a"])
    assert isinstance(config, AdaLoraConfig)
    assert (config.init_r, config.beta1, config.total_step, config.tinit, config.tfinal) == (10, 0.7, 1, 0, 0)


def test_only_what_changes_the_weights_meaning_sets_checkpoints_apart() -> None:
    def between(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
        saved = {"lavis_peft": header("1", "arch", "type", parse(**first))}
        return differences(saved, "arch", "type", parse(**second))

    assert between({"qformer": ADALORA}, {"qformer": {**ADALORA, "target_r": 3, "tinit": 9, "tfinal": 0.3}}) == []
    assert between({"qformer": ADALORA}, {"qformer": {**ADALORA, "init_r": 12}}) == []
    assert len(between({"qformer": ADALORA}, {"qformer": {**ADALORA, "init_r": 13}})) == 1
    assert len(between({"qformer": ADALORA}, {"qformer": {**ADALORA, "lora_alpha": 1}})) == 1


def test_the_meta_device_allocates_nothing(make_qformer: Any) -> None:
    spec = parse(qformer=ADALORA, train=[])
    with torch.device("meta"):
        module: nn.Module = make_qformer()
        apply(spec, {"qformer": module}, {"qformer": "qformer"}, {})
        budget = rank_budget(spec, {"qformer": module}, {"qformer": "qformer"})
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert budget is not None
    assert (budget.pools[0].initial, budget.pools[0].target) == (16 * 12, 16 * 8)
