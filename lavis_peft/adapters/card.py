"""The model card of an exported adapter."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.spec import plain

_NAMES = {"qformer": "the Q-Former", "llm": "the language model"}
# Where a part is in transformers' InstructBlipForConditionalGeneration.
_HF = {"qformer": "qformer", "llm": "language_model"}


# The published weights: LAVIS's file of Q-Former and projection, and the same model on the hub.
_PUBLISHED = {
    "instruct_blip_flanxl_trimmed.pth": "Salesforce/instructblip-flan-t5-xl",
    "instruct_blip_flanxxl_trimmed.pth": "Salesforce/instructblip-flan-t5-xxl",
    "instruct_blip_vicuna7b_trimmed.pth": "Salesforce/instructblip-vicuna-7b",
    "instruct_blip_vicuna13b_trimmed.pth": "Salesforce/instructblip-vicuna-13b",
}


def model_card(
    section: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, int]],
    hf_names: bool,
    trained_besides: bool,
    datasets: Iterable[str] = (),
) -> str:
    """A README.md in the form of the hub's model cards.

    Args:
        section: The `model` section that it was trained with.
        parts: ``layers``, ``ranks`` and ``parameters`` of each part's folder.
        hf_names: Whether names are those of transformers' InstructBLIP.
        trained_besides: Whether there is a ``trained.safetensors``.
        datasets: The names of the datasets that it was trained on.
    """
    base = _PUBLISHED.get(str(section.get("pretrained")).rpartition("/")[2])
    lines = ["---", "library_name: peft", "pipeline_tag: image-text-to-text"]
    lines += [f"base_model: {base}"] if base else []
    lines += ["tags:", "- instructblip", "- lavis-peft", "---", ""]
    lines += [f"# Adapter of {section.get('arch')}, {section.get('model_type')}", ""]
    on = f" ({base})" if base else ""
    data = f"; datasets: {', '.join(datasets)}" if datasets else ""
    lines += [f"Trained with lavis-peft on InstructBLIP{on}, in the layout of peft{data}.", ""]
    lines += ["| folder | part | layers | parameters |", "| --- | --- | ---: | ---: |"]
    for part, numbers in parts.items():
        lines.append(f"| `{part}/` | {_NAMES[part]} | {numbers['layers']:,} | {numbers['parameters']:,} |")
    if trained_besides:
        lines += ["", "`trained.safetensors` has what trained besides the adapters: they don't work without it."]
    adapters = section.get("adapters") or {}
    methods = [METHODS[adapters[part]["peft_type"]] for part in parts]
    for caution in dict.fromkeys(f"{each.peft_type}: {each.caution}." for each in methods if each.caution):
        lines += ["", caution]
    lines += ["", "The settings:", "", "```json", json.dumps(plain(adapters), indent=2), "```", ""]
    lines += _usage(parts, hf_names, trained_besides, base or "…")
    return "\n".join(lines) + "\n"


def _usage(parts: Mapping[str, Any], hf_names: bool, trained_besides: bool, base: str) -> list[str]:
    ours = ["With lavis-peft, `run.yaml` being a run config of the base model:", "", "```console"]
    ours += ['$ lavis-peft predict --adapter . --cfg-path run.yaml picture.jpg --prompt "…"', "```"]
    if not hf_names:
        return [
            *ours,
            "",
            "Names are those of LAVIS's Q-Former; `lavis-peft export --format peft-hf` writes the others.",
        ]
    code = ["from peft import PeftModel"]
    code += ["from safetensors.torch import load_file"] if trained_besides else []
    code += ["from transformers import InstructBlipForConditionalGeneration", ""]
    code += [f'model = InstructBlipForConditionalGeneration.from_pretrained("{base}")']
    if trained_besides:
        # Before the adapters, which give the layers' own biases other names.
        code += ['foreign = model.load_state_dict(load_file("trained.safetensors"), strict=False).unexpected_keys']
        code += ["assert not foreign, foreign"]
    code += [f'model.{_HF[part]} = PeftModel.from_pretrained(model.{_HF[part]}, "{part}")' for part in parts]
    return [*ours, "", "With transformers and peft:", "", "```python", *code, "```"]
