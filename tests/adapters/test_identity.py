from lavis_peft.adapters.identity import HEADER, differences, header
from lavis_peft.adapters.spec import AdaptersSpec, parse_adapters

ARCH, KIND = "blip2_t5_instruct_peft", "flant5xl"


def spec(**options: object) -> AdaptersSpec:
    section = {"qformer": {"peft_type": "LORA", "sublayers": ["ffn"], **options}}
    return parse_adapters(section, llm_family="t5")


def saved(**options: object) -> dict[str, object]:
    return {HEADER: header("0.1.0", ARCH, KIND, spec(**options)), "model": {}}


def test_the_same_model_does_not_differ() -> None:
    assert differences(saved(r=8), ARCH, KIND, spec(r=8)) == []


def test_saying_pefts_default_makes_no_difference() -> None:
    assert differences(saved(r=8, use_dora=False, rank_pattern={}), ARCH, KIND, spec()) == []


def test_dropout_does_not_change_what_weights_mean() -> None:
    assert differences(saved(lora_dropout=0.1), ARCH, KIND, spec()) == []


def test_every_difference_is_named_with_both_values() -> None:
    assert differences(saved(r=4, rank_pattern={"x": 1}), "other", KIND, spec(use_rslora=True)) == [
        "adapters.qformer.r: 4 in the checkpoint, 8 in this model",
        "adapters.qformer.rank_pattern.x: 1 in the checkpoint, not set in this model",
        "adapters.qformer.use_rslora: False in the checkpoint, True in this model",
        "arch: blip2_t5_instruct_peft in the checkpoint, other in this model",
    ]


def test_another_kind_of_tuning_is_told() -> None:
    found = differences(saved(), ARCH, KIND, parse_adapters({"qformer": "full"}, llm_family="t5"))
    assert "adapters.qformer: not set in the checkpoint, full in this model" in found


def test_files_of_others_have_nothing_to_compare() -> None:
    assert differences({"model": {}}, ARCH, KIND, spec()) == []
