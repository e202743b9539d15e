"""What the research code's configs train, at real sizes by `inspect`, against counts derived by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402

from lavis_peft.cli.inspect import count_config  # noqa: E402
from lavis_peft.research import ARCHS  # noqa: E402

#: By hand again, as numbers: the paper's for r 8 are among them (2,125,824; its 1.15 % of 185,660,160).
PUBLISHED = {
    "blip2_t5_instruct_lora": {"qformer": 185_660_160, "llm": 12_976_128, "projection": 1_574_912},
    "blip2_t5_instruct_qformer_lora": {"qformer": 2_125_824, "llm": 0, "projection": 1_574_912},
    "blip2_t5_instruct_qformer_llm_lora": {"qformer": 2_125_824, "llm": 12_976_128, "projection": 1_574_912},
    "blip2_vicuna_instruct_lora": {"qformer": 185_660_160, "llm": 15_794_176, "projection": 3_149_824},
    "blip2_vicuna_instruct_qformer_lora": {"qformer": 2_125_824, "llm": 0, "projection": 3_149_824},
    "blip2_vicuna_instruct_qformer_llm_lora": {"qformer": 2_125_824, "llm": 15_794_176, "projection": 3_149_824},
}


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_real_sizes(
    arch: str, research_config: Callable[..., dict[str, Any]], by_hand: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    if "vicuna" in arch and not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(research_config(arch)))
    counted = count_config(str(path))
    found = {name: part["trainable"] for name, part in counted["parts"].items()}
    assert found == by_hand("real", arch, r=8)
    assert found == {"vision": 0, "query_tokens": 24_576, "ln_vision": 2_816, **PUBLISHED[arch]}
    assert counted["arch"] == ARCHS[arch].ours
