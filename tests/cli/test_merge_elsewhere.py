"""Merged models in other people's classes, in processes where this package can't be imported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

import lavis_peft

lavis_peft.register()

import transformers  # noqa: E402  after the plugin mended what is broken on this stack
from lavis.common.registry import registry  # noqa: E402

from lavis_peft.cli import main  # noqa: E402
from lavis_peft.compat.standins import OPTIONAL  # noqa: E402

Section = Callable[..., dict[str, Any]]
TunedRun = Callable[..., tuple[Path, Path, Any]]

LORA = {"peft_type": "LORA", "r": 2}
BOTH = {
    "qformer": {**LORA, "sublayers": ["self_attention", "cross_attention", "ffn"]},
    "llm": {**LORA, "sublayers": ["attention", "ffn"]},
}
TEXTS = ["what color is the picture ?", "is there a circle ?", "how many"]
needs_instructblip = pytest.mark.skipif(
    not hasattr(transformers, "InstructBlipForConditionalGeneration"),
    reason=f"transformers {transformers.__version__} has no InstructBLIP",
)


def merge(config: Path, checkpoint: Path, output: Path, *arguments: str) -> dict[str, Any]:
    given = ["--cfg-path", str(config), "--checkpoint", str(checkpoint), "--output", str(output), "--json"]
    result = CliRunner().invoke(main, ["merge", *given, *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def in_a_process(program: str, *arguments: object) -> str:
    """What a program prints in a process where this package can't be imported."""
    hide = """
import sys
sys.modules["lavis_peft"] = None  # what makes an import of it fail, wherever it lies
import torch
# Only where torchvision's compiled part isn't of this torch; it is declared once per process.
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    try:
        import torchvision
        break
    except RuntimeError:
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for each in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[each]
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", hide + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


#: A directory, and nothing else than transformers.
_TRANSFORMERS = """
import json
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor
folder, inputs = sys.argv[1:]
model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
processor = InstructBlipProcessor.from_pretrained(folder)
given = torch.load(inputs, weights_only=True)
t5 = model.config.text_config.model_type == "t5"

def answers(texts, pixels, beams):
    words = processor(images=[Image.new("RGB", (50, 40))] * len(texts), text=texts, padding=True, return_tensors="pt")
    assert words["pixel_values"].shape == pixels.shape
    words["pixel_values"] = pixels
    if len(texts) > 1:
        # transformers 5 pads both texts on the language model's side; the Q-Former counts its positions from the left.
        own = processor.qformer_tokenizer(texts, padding=True, return_tensors="pt")
        words["qformer_input_ids"], words["qformer_attention_mask"] = own.input_ids, own.attention_mask
    out = model.generate(**words, num_beams=beams, do_sample=False, max_new_tokens=5, length_penalty=1.0)
    prompt = words["input_ids"]
    if not t5 and torch.equal(out[:, : prompt.shape[1]], prompt):
        out = out[:, prompt.shape[1] :]  # newer versions give the prompt back as well
    return [text.strip() for text in processor.batch_decode(out, skip_special_tokens=True)]

together = [answers(given["texts"], given["image"], beams) for beams in (1, 3)]
alone = [answers([text], given["image"][i : i + 1], 1) for i, text in enumerate(given["texts"])]
print(json.dumps({"together": together, "alone": alone}))
"""


@needs_instructblip
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_transformers_generates_the_same_tokens(
    family: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path
) -> None:
    config, checkpoint, model = tuned_run(model_section(family, adapters=BOTH), strong=True)
    found = merge(config, checkpoint, tmp_path / "out", "--format", "hf")
    assert found["prefix_difference"] < 1e-4
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.save({"image": image, "texts": TEXTS}, tmp_path / "inputs.pt")
    theirs = json.loads(in_a_process(_TRANSFORMERS, tmp_path / "out", tmp_path / "inputs.pt"))
    length = {"max_length": 5 if family == "t5" else 6, "min_length": 0, "repetition_penalty": 1.0}
    for beams, answers in zip((1, 3), theirs["together"], strict=True):
        assert model.generate({"image": image, "prompt": TEXTS}, num_beams=beams, **length) == answers
    alone = [
        model.generate({"image": image[i : i + 1], "prompt": [text]}, num_beams=1, **length)
        for i, text in enumerate(TEXTS)
    ]
    assert alone == theirs["alone"]
    assert len({text for texts in alone for text in texts}) > 1  # they depend on what was asked


#: Builds LAVIS main's own class at our sizes, with everything in it but what the merged files bring.
_LAVIS_MAIN = """
import importlib.abc, importlib.machinery, json, types
from pathlib import Path
from unittest.mock import MagicMock
import peft, transformers

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    names = ABSENT
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.names else None
    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module
    def exec_module(self, module):
        pass

sys.meta_path.append(Absent())
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2 import LayerNorm
from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel
from lavis.models.eva_vit import VisionTransformer
from functools import partial

given = json.loads(sys.argv[1])

def tokenizer(self, **_):
    made = transformers.BertTokenizer.from_pretrained(given["bert"], truncation_side="left")
    made.add_special_tokens({"bos_token": "[DEC]"})
    return made

def vision(self, *_):
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    made = VisionTransformer(norm_layer=norm, use_mean_pooling=False, qkv_bias=True, **given["vit"])
    made.load_state_dict(torch.load(given["vit_weights"], weights_only=True))
    return made, LayerNorm(made.num_features)

def qformer(self, *_):
    config = BertConfig(**given["qformer"])
    made = BertLMHeadModel(config)
    return made, torch.nn.Parameter(torch.zeros(1, config.query_length, config.hidden_size))

cls = registry.get_model_class(given["arch"])
cls.init_tokenizer, cls.init_vision_encoder, cls.init_Qformer = tokenizer, vision, qformer
model = cls(img_size=32, num_query_token=4, vit_precision="fp32", **given["llm"]).float().eval()
message = model.load_checkpoint(given["merged"])
samples = torch.load(given["inputs"], weights_only=True)
if rows := samples.pop("padding"):
    # LAVIS draws the rows of the padding token that it adds; in the loss, the output's is one of the vocabulary's.
    with torch.no_grad():
        for table, row in zip((model.llm_model.get_input_embeddings(), model.llm_model.get_output_embeddings()), rows):
            table.weight[model.llm_tokenizer.pad_token_id] = row
elsewhere = ("visual_encoder.", "t5_model.", "llm_model.")
with torch.no_grad():
    loss = model(samples)["loss"].item()
answers = model.generate({"image": samples["image"], "prompt": samples["text_input"]}, num_beams=1, max_length=6)
missing = [key for key in message.missing_keys if not key.startswith(elsewhere)]
print(json.dumps({"foreign": message.unexpected_keys, "missing": missing, "loss": loss, "answers": answers}))
"""


@pytest.mark.skipif(
    registry.get_model_class("blip2_t5_instruct") is None, reason="the installed LAVIS has no InstructBLIP of its own"
)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_lavis_main_loads_the_merged_files_without_the_plugin(
    family: str, model_section: Section, tuned_run: TunedRun, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # In the precision that LAVIS holds its language models in, whose rounding is then no difference.
    held = {"llm_precision": "bf16" if family == "t5" else "fp16"}
    if family == "llama":
        held["llm_model"] = str(request.getfixturevalue("sentencepiece_dir"))
    section = model_section(family, adapters=BOTH, **held)
    config, checkpoint, model = tuned_run(section, strong=True)
    merge(config, checkpoint, tmp_path / "out", "--verify", "layers")
    # In float32 from the start: cast back from half precision, LLaMA's table of rotations would stay rounded.
    written = {**OmegaConf.load(tmp_path / "out" / "run.yaml").model, "llm_precision": "fp32"}
    ours = type(model).from_config(written).eval()
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    samples = {"image": image, "text_input": TEXTS, "text_output": ["yes", "no", "red circle"]}
    padding = []
    if family == "llama":
        tables = (ours.llm.get_input_embeddings(), ours.llm.get_output_embeddings())
        padding = [table.weight[ours.llm_tokenizer.pad_token_id].detach().clone() for table in tables]
    torch.save({**samples, "padding": padding}, tmp_path / "inputs.pt")
    qformer = model.Qformer.config.to_dict()
    given = {
        "arch": "blip2_t5_instruct" if family == "t5" else "blip2_vicuna_instruct",
        "bert": model.spec.qformer_tokenizer,
        "vit": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2},
        "vit_weights": str(tmp_path / "vit.pth"),
        "qformer": {key: value for key, value in qformer.items() if isinstance(value, (int, float, str, bool))},
        "llm": {model.llm_key: str(tmp_path / "out" / "llm")},
        "merged": str(tmp_path / "out" / "merged.pth"),
        "inputs": str(tmp_path / "inputs.pt"),
    }
    program = _LAVIS_MAIN.replace("ABSENT", repr(set(OPTIONAL)))
    found = json.loads(in_a_process(program, json.dumps(given)))
    assert (found["foreign"], found["missing"]) == ([], [])
    with torch.no_grad():
        assert found["loss"] == pytest.approx(ours(samples)["loss"].item(), rel=1e-4)
    assert found["answers"] == ours.generate({"image": image, "prompt": TEXTS}, num_beams=1, max_length=6)
