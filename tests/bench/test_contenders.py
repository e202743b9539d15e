"""The contenders do the same work: same losses, same choices, as many trained parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lavis_peft

lavis_peft.register()

from lavis_peft.bench import huggingface, sizes  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.bench.contender import Ours  # noqa: E402
from lavis_peft.bench.parts import PARTS, step_parts  # noqa: E402
from lavis_peft.bench.plain import Plain, Single  # noqa: E402

FAMILIES = ["t5", *(["llama"] if hasattr(transformers, "LlamaForCausalLM") else [])]


def section(family: str, folder: Path, **qformer: Any) -> dict[str, Any]:
    made = sizes.model_section("tiny", family, "fp32", folder)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made["qformer"] = {**made["qformer"], **still}
    if family == "t5":
        made["t5_model"] = {**made["t5_model"], "dropout_rate": 0.0}
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_way_computes_the_same(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path), sizes.work("tiny", 3, "cpu")
    ours, plain, single = (cls(made, "cpu") for cls in (Ours, Plain, Single))
    assert ours.rank(work) == plain.rank(work) == single.rank(work)
    trained = [sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in (ours, plain)]
    assert trained[0] == trained[1]
    for _ in range(2):  # the second step sees what the first one's gradients did
        assert ours.train(work) == pytest.approx(plain.train(work), rel=1e-4)
    assert len(ours.generate(work)) == len(plain.generate(work)) == 3


@pytest.mark.skipif(huggingface.missing() is not None, reason=str(huggingface.missing()))
@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_trains_as_many_parameters_and_learns(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path), sizes.work("tiny", 3, "cpu")
    ours = Ours(made, "cpu")
    text = ours.model.t5_tokenizer if family == "t5" else ours.model.llm_tokenizer
    theirs = huggingface.HuggingFace(made, (ours.model.tokenizer, text), "cpu")
    trained = [sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in (ours, theirs)]
    assert trained[0] == trained[1]
    assert not hasattr(theirs, "rank")
    losses = [theirs.train(work) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert len(theirs.generate(work)) == 3


def test_a_step_divides_into_its_parts(tmp_path: Path) -> None:
    ours, work = Ours(section("t5", tmp_path), "cpu"), sizes.work("tiny", 3, "cpu")
    spent = step_parts(ours, work, lambda: torch.zeros(3))
    assert tuple(spent) == PARTS
    assert all(seconds > 0 for seconds in spent.values())
    assert "encode_images" not in vars(ours.model)
