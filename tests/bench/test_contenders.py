"""The contenders do the same work: same losses, same choices, as many trained parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lavis_peft

lavis_peft.register()

from lavis.common.registry import registry  # noqa: E402

from lavis_peft.bench import huggingface, sizes  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.bench.contender import Ours  # noqa: E402
from lavis_peft.bench.parts import PARTS, step_parts  # noqa: E402
from lavis_peft.bench.plain import Plain, Single  # noqa: E402

FAMILIES = ["t5", *(["llama"] if hasattr(transformers, "LlamaForCausalLM") else [])]


def section(family: str, folder: Path, precision: str = "fp32") -> dict[str, Any]:
    made = sizes.model_section("tiny", family, precision, folder)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made["qformer"] = {**made["qformer"], **still}
    if family == "t5":
        made["t5_model"] = {**made["t5_model"], "dropout_rate": 0.0}
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_way_computes_the_same(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path), sizes.work("tiny", 3, "cpu")
    ours = Ours(made, "cpu")
    plain, single = Plain(made, "cpu", ours.model), Single(made, "cpu")
    assert ours.rank(work) == plain.rank(work) == single.rank(work)
    trained = [sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in (ours, plain)]
    assert trained[0] == trained[1]
    for _ in range(2):  # the second step sees what the first one's gradients did
        assert ours.train(work) == pytest.approx(plain.train(work), rel=1e-4)
    assert ours.generate(work) == plain.generate(work)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_weights_are_there_once_and_trained_ones_are_each_contender_s(family: str, tmp_path: Path) -> None:
    made = section(family, tmp_path)
    ours = Ours(made, "cpu")
    for cls in (Plain, Single):
        places = {parameter.data_ptr() for parameter in ours.model.parameters()}
        for name, parameter in cls(made, "cpu", ours.model).model.named_parameters():
            assert (parameter.data_ptr() in places) is not parameter.requires_grad, name


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_that_of_a_run_with_amp(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path, "half"), sizes.work("tiny", 3, "cpu")
    ours = Ours(made, "cpu")
    plain = Plain(made, "cpu", ours.model)
    seen = set()
    for one in (ours, plain):
        query = one.model.Qformer.bert.encoder.layer[0].attention.self.query
        query.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    one, other = ours.train(work), plain.train(work)
    assert seen == {torch.bfloat16}
    assert one == pytest.approx(other, rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_contender_generates_answers_of_one_length(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path), sizes.work("tiny", 3, "cpu")
    ours = Ours(made, "cpu")
    contenders: list[Any] = [ours, Plain(made, "cpu", ours.model)]
    llms = [one.model.llm for one in contenders]
    if huggingface.missing() is None:
        contenders.append(huggingface.HuggingFace(made, ours.model, "cpu"))
        llms.append(contenders[-1].model.get_base_model().language_model)
    for one, llm in zip(contenders, llms, strict=True):
        lengths, plain = set(), llm.generate

        def note(*given: Any, llm: Any = llm, plain: Any = plain, lengths: set[int] = lengths, **more: Any) -> Any:
            ids = plain(*given, **more)
            # Hugging Face's LLaMA gives the prompt's tokens back too; T5, and LLaMA in older versions, an opening one.
            opened = family == "t5" or bool((ids[:, 0] == llm.config.bos_token_id).all())
            before = more["input_ids"].shape[1] if "input_ids" in more else int(opened)
            lengths.add(ids.shape[1] - before)
            return ids

        llm.generate = note
        one.generate(work)
        assert lengths == {ours.new_tokens}


@pytest.mark.skipif(huggingface.missing() is not None, reason=str(huggingface.missing()))
@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_trains_as_many_parameters_and_learns(family: str, tmp_path: Path) -> None:
    made, work = section(family, tmp_path), sizes.work("tiny", 3, "cpu")
    ours = Ours(made, "cpu")
    theirs = huggingface.HuggingFace(made, ours.model, "cpu")
    trained = [sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in (ours, theirs)]
    assert trained[0] == trained[1]
    assert not hasattr(theirs, "rank")
    losses = [theirs.train(work) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert len(theirs.generate(work)) == 3


@pytest.mark.skipif(huggingface.missing() is not None, reason=str(huggingface.missing()))
@pytest.mark.parametrize(("family", "billions"), [("t5", 4.0), ("llama", 7.9)])
def test_the_real_sizes_are_the_published_ones_and_hugging_face_s(family: str, billions: float, tmp_path: Path) -> None:
    made = sizes.model_section("real", family, "half", tmp_path, "cuda")
    ours = registry.get_model_class(made["arch"]).on_meta(made)
    theirs = huggingface.HuggingFace(made, ours, "meta")
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs.model)]
    assert counts[0] == pytest.approx(billions * 1e9, rel=0.02)
    # Theirs has a bias for the vision encoder's keys too, and rows for more tokens; ours its own vocabulary.
    assert counts[1] == pytest.approx(counts[0], rel=1e-3)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs.model)]
    assert trained[0] == trained[1]
    precisions = [{p.dtype for p in model.parameters()} for model in (ours, theirs.model)]
    assert torch.float32 in precisions[0] and all(len(own) > 1 for own in precisions)
    attention = [config._attn_implementation for config in (theirs.model.config, theirs.model.config.text_config)]
    assert attention == ["sdpa", "sdpa"]


def test_a_step_divides_into_its_parts(tmp_path: Path) -> None:
    ours, work = Ours(section("t5", tmp_path), "cpu"), sizes.work("tiny", 3, "cpu")
    spent = step_parts(ours, work, lambda: torch.zeros(3))
    assert tuple(spent) == PARTS
    assert all(seconds > 0 for seconds in spent.values())
    assert "encode_images" not in vars(ours.model)
