"""The model card of an exported adapter."""

import yaml

from lavis_peft.adapters.card import model_card

PARTS = {"qformer": {"layers": 8, "ranks": 16, "parameters": 1234}}
SECTION = {"arch": "blip2_t5_instruct_peft", "model_type": "flant5xl", "adapters": {"qformer": {"peft_type": "LORA"}}}


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_published_weights_are_named_as_the_hub_has_them() -> None:
    pretrained = "https://storage.googleapis.com/x/instruct_blip_flanxl_trimmed.pth"
    card = model_card({**SECTION, "pretrained": pretrained}, PARTS, True, False, ["iconqa_peft"])
    assert front_matter(card)["base_model"] == "Salesforce/instructblip-flan-t5-xl"
    assert 'from_pretrained("Salesforce/instructblip-flan-t5-xl")' in card
    assert "datasets: iconqa_peft" in card and "| `qformer/` | the Q-Former | 8 | 1,234 |" in card


def test_other_weights_are_left_open_and_their_paths_out() -> None:
    card = model_card({**SECTION, "pretrained": "/home/me/base.pth"}, PARTS, True, True)
    assert "base_model" not in front_matter(card)
    assert 'from_pretrained("…")' in card and "/home/me" not in card
    assert "trained.safetensors" in card and "\n\n\n" not in card


def test_what_peft_makes_of_some_methods_is_said_once() -> None:
    adapters = {part: {"peft_type": "FROD"} for part in ("qformer", "llm")}
    parts = dict.fromkeys(adapters, PARTS["qformer"])
    assert model_card({**SECTION, "adapters": adapters}, parts, True, False).count("FROD: loading it, peft itself") == 1
    assert "peft itself" not in model_card(SECTION, PARTS, True, False)
