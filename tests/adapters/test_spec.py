import json
from collections.abc import Mapping
from dataclasses import fields

import pytest
from peft import LoraConfig

from lavis_peft.adapters.methods import METHODS, config_keys
from lavis_peft.adapters.spec import AdapterSpec, AdaptersSpec, documented_keys, parse_adapters, peft_config
from lavis_peft.errors import ConfigError

LORA = {"peft_type": "LORA", "sublayers": ["ffn"]}


def problems(section: object, llm_family: str = "t5") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_adapters(section, llm_family=llm_family)
    return caught.value.problems


def only(section: object, llm_family: str = "t5") -> str:
    found = problems(section, llm_family)
    assert len(found) == 1, found
    return found[0]


def test_no_section_freezes_both_parts() -> None:
    spec = parse_adapters(None, llm_family="t5")
    assert spec == AdaptersSpec()
    assert (spec.qformer.mode, spec.llm.mode) == ("frozen", "frozen")
    assert spec.train == ("query_tokens", "projection", "ln_vision")


def test_parts_are_words_or_mappings() -> None:
    spec = parse_adapters({"qformer": {**LORA, "r": 4, "use_dora": True}, "llm": "full"}, llm_family="llama")
    assert spec.qformer == AdapterSpec("adapter", "LORA", ("ffn",), None, {"r": 4, "use_dora": True})
    assert spec.llm == AdapterSpec("full")


def test_order_of_words_makes_no_difference() -> None:
    def parse(words: list[str], train: list[str]) -> AdaptersSpec:
        return parse_adapters({"qformer": {**LORA, "sublayers": words}, "train": train}, llm_family="t5")

    first = parse(["ffn", "self_attention"], ["ln_vision", "query_tokens"])
    assert first == parse(["self_attention", "ffn"], ["query_tokens", "ln_vision"])
    assert first.train == ("query_tokens", "ln_vision")


def test_nothing_besides_may_train() -> None:
    assert parse_adapters({"train": []}, llm_family="t5").train == ()


@pytest.mark.parametrize(
    "section",
    [
        {"qformer": "full", "llm": "frozen", "train": []},
        {"qformer": {**LORA, "r": 4, "rank_pattern": {"layer.0.*": 2}}, "llm": {**LORA, "lora_alpha": 1.5}},
        {"llm": {"peft_type": "LORA", "target_modules": ["q", "v"], "bias": "lora_only"}},
        {"llm": {"peft_type": "LORA", "target_modules": r".*\.q"}},
        {"qformer": {"peft_type": "LN_TUNING"}, "llm": {"peft_type": "LN_TUNING", "sublayers": ["ffn", "final"]}},
    ],
)
def test_as_dict_is_plain_and_parses_to_the_same(section: Mapping[str, object]) -> None:
    spec = parse_adapters(section, llm_family="t5")
    written = json.loads(json.dumps(spec.as_dict()))
    assert written == spec.as_dict()
    assert parse_adapters(written, llm_family="t5") == spec


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (["ffn"], "model.adapters: found ['ffn']; give a mapping with any of qformer, llm, train"),
        (
            {"qfromer": "full"},
            "model.adapters.qfromer: unknown part (did you mean 'qformer'?); allowed: qformer, llm, train",
        ),
        ({"llm": "frozn"}, "model.adapters.llm: found 'frozn' (did you mean 'frozen'?); allowed: full, frozen"),
        ({"llm": None}, "model.adapters.llm: found nothing; allowed: full, frozen, or a mapping with peft_type"),
        ({"llm": False}, "model.adapters.llm: found False; allowed: full, frozen"),
        ({"llm": "lora"}, "model.adapters.llm: found 'lora' (did you mean 'peft_type: LORA' in a mapping?)"),
        ({"llm": {"sublayers": ["ffn"]}}, "model.adapters.llm.peft_type: missing; supported: LORA"),
        (
            {"llm": {**LORA, "peft_type": "POLY"}},
            "model.adapters.llm.peft_type: POLY can't be used here: it needs task numbers, which LAVIS's models don't",
        ),
        (
            {"llm": {**LORA, "peft_type": "lorra"}},
            "llm.peft_type: found 'lorra' (did you mean 'LORA'?); supported: LORA",
        ),
        ({"llm": {**LORA, "peft_type": 3}}, "model.adapters.llm.peft_type: found 3; supported: LORA"),
        ({"llm": {"peft_type": "LORA"}}, "model.adapters.llm: neither sublayers nor target_modules is given"),
        ({"llm": {**LORA, "target_modules": "q"}}, "model.adapters.llm: both sublayers and target_modules are given"),
        (
            {"llm": {"peft_type": "LORA", "sublayers": []}},
            "model.adapters.llm.sublayers: found []; give a list of one or",
        ),
        ({"llm": {"peft_type": "LORA", "sublayers": "ffn"}}, "model.adapters.llm.sublayers: found 'ffn'; give a list"),
        (
            {"qformer": {"peft_type": "LN_TUNING", "sublayers": ["self_attention.query"]}},
            "qformer.sublayers: unknown name 'self_attention.query' (did you mean 'self_attention'?); allowed: "
            "self_attention, cross_attention, ffn, ffn.query, ffn.text, embeddings",
        ),
        (
            {"llm": {"peft_type": "LN_TUNING", "layers_to_transform": 1}},
            "llm.layers_to_transform: unknown key; allowed: peft_type, sublayers, target_modules, and those of peft",
        ),
        ({"llm": {"peft_type": "LN_TUNING", "modules_to_save": ["x"]}}, "llm.modules_to_save: can't be set here"),
        ({"llm": {"peft_type": "LN_TUNNING"}}, "llm.peft_type: found 'LN_TUNNING' (did you mean 'LN_TUNING'?)"),
        (
            {"llm": {"peft_type": "LORA", "sublayers": ["self_attention"]}},
            "llm.sublayers: unknown name 'self_attention' (did you mean 'attention'?); allowed:",
        ),
        (
            {"llm": {"peft_type": "LORA", "sublayers": ["ffn", "ffn"]}},
            "model.adapters.llm.sublayers: 'ffn' is given 2 times",
        ),
        ({"llm": {"peft_type": "LORA", "target_modules": []}}, "model.adapters.llm.target_modules: found []; give"),
        (
            {"llm": {"peft_type": "LORA", "target_modules": ["q", 1]}},
            "model.adapters.llm.target_modules: found ['q', 1]",
        ),
        ({"llm": {"peft_type": "LORA", "target_modules": "(q"}}, "found '(q', which is no regular expression"),
        ({"llm": {"peft_type": "LORA", "target_modules": ["q", "q"]}}, "target_modules: 'q' is given 2 times"),
        ({"llm": {**LORA, "lora_alhpa": 8}}, "model.adapters.llm.lora_alhpa: unknown key (did you mean 'lora_alpha'?)"),
        ({"llm": {**LORA, "task_type": "CAUSAL_LM"}}, "llm.task_type: can't be set here: the plugin sets it itself"),
        (
            {"llm": {**LORA, "modules_to_save": ["x"]}},
            "model.adapters.llm.modules_to_save: can't be set here: it would",
        ),
        ({"llm": {**LORA, "r": 0}}, "model.adapters.llm.r: found 0; give a whole number above 0"),
        ({"llm": {**LORA, "r": True}}, "model.adapters.llm.r: found True; give a whole number above 0"),
        ({"llm": {**LORA, "r": 8.0}}, "model.adapters.llm.r: found 8.0; give a whole number above 0"),
        ({"llm": {**LORA, "r": None}}, "model.adapters.llm.r: found None; give a whole number above 0"),
        ({"llm": {**LORA, "lora_alpha": True}}, "model.adapters.llm.lora_alpha: found True; give a number above 0"),
        ({"llm": {**LORA, "lora_alpha": 0}}, "model.adapters.llm.lora_alpha: found 0; give a number above 0"),
        (
            {"llm": {**LORA, "lora_alpha": float("inf")}},
            "model.adapters.llm.lora_alpha: found inf; give a number above 0",
        ),
        ({"llm": {**LORA, "lora_dropout": 1}}, "model.adapters.llm.lora_dropout: found 1; give a number from 0 up to"),
        ({"llm": {**LORA, "lora_dropout": -0.1}}, "model.adapters.llm.lora_dropout: found -0.1; give a number from 0"),
        ({"llm": {**LORA, "use_dora": "yes"}}, "model.adapters.llm.use_dora: found 'yes'; give true or false"),
        ({"llm": {**LORA, "bias": "some"}}, "model.adapters.llm.bias: found 'some'; give one of none, all, lora_only"),
        (
            {"llm": {**LORA, "init_lora_weights": 1}},
            "llm.init_lora_weights: found 1; give one of true, false, gaussian",
        ),
        ({"llm": {**LORA, "init_lora_weights": "pissa_niter_4"}}, "found 'pissa_niter_4'; give one of true, false"),
        (
            {"llm": {**LORA, "rank_pattern": {"q": 0}}},
            "rank_pattern: found {'q': 0}; give a whole number above 0 for each",
        ),
        ({"llm": {**LORA, "rank_pattern": {"(q": 1}}}, "names or regular expressions of layers; '(q' is neither"),
        ({"llm": {**LORA, "alpha_pattern": 3}}, "alpha_pattern: found 3; give a mapping of layer names to values"),
        (
            {"llm": {**LORA, "layers_to_transform": [0, -1]}},
            "layers_to_transform: found [0, -1]; give a layer's number",
        ),
        (
            {"train": "all"},
            "model.adapters.train: found 'all'; give a list of any of query_tokens, projection, ln_vision",
        ),
        ({"train": None}, "model.adapters.train: found None; give a list of any of query_tokens"),
        ({"train": ["t5_proj"]}, "model.adapters.train: unknown name 't5_proj'; allowed: query_tokens, projection"),
        ({"train": ["ln_vison"]}, "model.adapters.train: unknown name 'ln_vison' (did you mean 'ln_vision'?)"),
        ({"train": ["ln_vision"] * 3}, "model.adapters.train: 'ln_vision' is given 3 times"),
    ],
)
def test_each_mistake_has_a_message_of_its_own(section: object, message: str) -> None:
    assert message in only(section)


def test_all_problems_come_at_once() -> None:
    section = {
        "qformer": {"peft_type": "LORRA", "sublayers": ["ffm", "ffn", "ffn"], "r": 0, "lora_alpa": 8},
        "llm": {"peft_type": "LORA", "sublayer": ["ffn"], "lora_dropout": 2},
        "train": ["everything"],
        "vit": "full",
    }
    found = problems(section)
    for key in (
        "vit: unknown part",
        "qformer.sublayers: unknown name 'ffm'",
        "qformer.sublayers: 'ffn' is given 2 times",
        "qformer.peft_type: found 'LORRA'",
        "qformer.r: found 0",
        "qformer.lora_alpa: unknown key",
        "llm: neither sublayers nor target_modules",
        "llm.sublayer: unknown key (did you mean 'sublayers'?)",
        "llm.lora_dropout: found 2",
        "train: unknown name 'everything'",
    ):
        assert sum(f"model.adapters.{key}" in problem for problem in found) == 1, key
    assert len(found) == 10


def test_the_section_may_have_another_name() -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.llm: found 'no'"):
        parse_adapters({"llm": "no"}, llm_family="t5", where="teacher")


def test_words_are_those_of_the_language_model_at_hand() -> None:
    section = {"llm": {"peft_type": "LORA", "sublayers": ["ffn.gate_proj"]}}
    assert parse_adapters(section, llm_family="llama").llm.sublayers == ("ffn.gate_proj",)
    assert "unknown name 'ffn.gate_proj'" in only(section, "t5")


@pytest.mark.parametrize(
    "options", [{"layers_to_transform": [0]}, {"init_lora_weights": "orthogonal", "r": 3}], ids=["regex", "odd rank"]
)
def test_what_peft_itself_refuses_is_known_before_any_weight_is_read(options: dict[str, object]) -> None:
    section = {"peft_type": "LORA", "target_modules": ".*", **options}
    assert only({"llm": section}).startswith("model.adapters.llm: peft refuses these settings: ")


def test_checked_and_refused_keys_are_peft_keys() -> None:
    known = {item.name for item in fields(LoraConfig)}
    assert set(METHODS["LORA"].checks) <= set(config_keys("LORA")) <= known
    assert not set(METHODS["LORA"].refused) & set(config_keys("LORA"))


def test_peft_gets_the_options_unchanged_and_none_of_the_specs_own_objects() -> None:
    spec = parse_adapters({"qformer": {**LORA, "r": 5, "rank_pattern": {"x": 1}}}, llm_family="t5").qformer
    config = peft_config(spec, ["a"])
    assert (config.r, config.rank_pattern, config.target_modules) == (5, {"x": 1}, {"a"})
    config.rank_pattern["x"] = 2
    assert spec.options["rank_pattern"] == {"x": 1}
    assert peft_config(spec, "a|b", r=None).r == LoraConfig().r


def test_documented_keys_are_the_keys_that_are_read() -> None:
    rows = documented_keys()
    names = [row[0] for row in rows]
    top = len(fields(AdaptersSpec))
    assert names[:top] == [f"model.adapters.{item.name}" for item in fields(AdaptersSpec)]
    own = [item.name for item in fields(AdapterSpec) if item.name not in ("mode", "options")]
    assert [name.rpartition(".")[2] for name in names[top:-1]] == own
    assert all(cell for row in rows for cell in row)
