"""The model card of an exported adapter."""

import json
from collections.abc import Mapping
from typing import Any

from lavis_peft.adapters.spec import plain

_NAMES = {"qformer": "the Q-Former", "llm": "the language model"}
# Where a part is in transformers' InstructBlipForConditionalGeneration.
_HF = {"qformer": "qformer", "llm": "language_model"}


def model_card(
    section: Mapping[str, Any], parts: Mapping[str, Mapping[str, int]], hf_names: bool, trained_besides: bool
) -> str:
    """A README.md in the form of the hub's model cards.

    Args:
        section: The `model` section that it was trained with.
        parts: ``layers``, ``ranks`` and ``parameters`` of each part's folder.
        hf_names: Whether names are those of transformers' InstructBLIP.
        trained_besides: Whether there is a ``trained.safetensors``.
    """
    lines = ["---", "library_name: peft", "pipeline_tag: image-text-to-text"]
    lines += ["tags:", "- instructblip", "- lavis-peft", "---", ""]
    lines += [f"# Adapter of {section.get('arch')}, {section.get('model_type')}", ""]
    lines += ["Trained with lavis-peft on InstructBLIP, in the layout of peft.", ""]
    lines += ["| folder | part | layers | parameters |", "| --- | --- | ---: | ---: |"]
    for part, numbers in parts.items():
        lines.append(f"| `{part}/` | {_NAMES[part]} | {numbers['layers']:,} | {numbers['parameters']:,} |")
    if trained_besides:
        lines += ["", "`trained.safetensors` has what trained besides the adapters: they don't work without it."]
    lines += ["", "The settings:", "", "```json", json.dumps(plain(section.get("adapters") or {}), indent=2), "```", ""]
    lines += _usage(parts, hf_names, trained_besides)
    return "\n".join(lines) + "\n"


def _usage(parts: Mapping[str, Any], hf_names: bool, trained_besides: bool) -> list[str]:
    ours = ["With lavis-peft, `run.yaml` being a run config of the base model:", "", "```console"]
    ours += ['$ lavis-peft predict --adapter . --cfg-path run.yaml picture.jpg --prompt "…"', "```"]
    if not hf_names:
        return [
            *ours,
            "",
            "Names are those of LAVIS's Q-Former; `lavis-peft export --format peft-hf` writes the others.",
        ]
    code = ["from peft import PeftModel", "from transformers import InstructBlipForConditionalGeneration", ""]
    code += ['model = InstructBlipForConditionalGeneration.from_pretrained("…")']
    code += [f'model.{_HF[part]} = PeftModel.from_pretrained(model.{_HF[part]}, "{part}")' for part in parts]
    if trained_besides:
        code += ["", "from safetensors.torch import load_file", ""]
        code += ['model.load_state_dict(load_file("trained.safetensors"), strict=False)']
    return [*ours, "", "With transformers and peft:", "", "```python", *code, "```"]
