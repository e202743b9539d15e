"""Small real parts for the tests: tokenizers, language models and model sections, made in a temporary folder."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lavis_peft import compat

# Nothing in the suite may wait for a hub that isn't there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Before any test module imports transformers: a torchvision that doesn't fit the torch would break it.
compat.apply()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let no test's random numbers depend on the tests that its worker ran before."""
    for name, seed in (("torch", "manual_seed"), ("numpy.random", "seed")):
        if name in sys.modules:  # tests of pure functions import neither
            getattr(sys.modules[name], seed)(0)


WORDS = [
    "question",
    "short",
    "answer",
    ":",
    "?",
    ".",
    "(",
    ")",
    "a",
    "b",
    "c",
    "is",
    "there",
    "the",
    "what",
    "color",
    "shape",
    "image",
    "picture",
    "no",
    "yes",
    "not",
    "in",
    "of",
    "red",
    "green",
    "blue",
    "black",
    "circle",
    "square",
    "triangle",
    "context",
    "lecture",
    "options",
    "left",
    "right",
    "small",
    "large",
    "many",
    "how",
]


def _write_fast_tokenizer(folder: Path, vocabulary: list[str], prefix: str, suffix: str, **names: str) -> None:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing

    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    marks = [(mark, ids[mark]) for mark in (prefix, suffix) if mark]
    tokenizer.post_processor = TemplateProcessing(single=f"{prefix} $A {suffix}".strip(), special_tokens=marks)
    tokenizer.add_special_tokens(list(names.values()))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


T5_SIZES = {
    "vocab_size": 3 + len(WORDS),
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
LLAMA_SIZES = {
    "vocab_size": 3 + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def _save_random(model: Any, folder: Path) -> None:
    """Weights large enough that no two answers get the same score by accident."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random T5 in Hugging Face's format, with a word tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    from lavis_peft.models.language import untied

    # As FLAN-T5: with an output layer of its own, which transformers 5 doesn't give a model that it builds.
    _save_random(untied(T5ForConditionalGeneration(T5Config(**T5_SIZES))), folder)
    _write_fast_tokenizer(
        folder, ["<pad>", "</s>", "<unk>", *WORDS], "", "</s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    return folder


def _with_llama() -> ModuleType:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA")
    return transformers


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA in Hugging Face's format, with a word tokenizer."""
    transformers = _with_llama()
    folder = tmp_path_factory.mktemp("llama")
    _save_random(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_SIZES)), folder)
    _write_fast_tokenizer(
        folder, ["<unk>", "<s>", "</s>", *WORDS], "<s>", "", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return folder


_SENTENCES = [
    "Question: is there a red circle? Short answer:",
    "what shape is it ?",
    "Question: the color",
    "yes",
    "blue triangle",
    "a large green square",
    "Short answers to questions about the shapes in an image.",
]


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA folder with a real SentencePiece model, which LAVIS's slow tokenizer needs."""
    transformers, sentencepiece = _with_llama(), pytest.importorskip("sentencepiece")
    import torch

    folder = tmp_path_factory.mktemp("vicuna")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(_SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=False,
    )
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


QFORMER_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT_SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2, "stem": "linear"}


@pytest.fixture
def model_section(bert_dir: Path, request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Make the `model` section of a run config with small random parts.

    ``model_section("t5", adapters={...}, prompt="…")`` gives plain containers; keywords replace keys.
    """

    def make(family: str, **changes: Any) -> dict[str, Any]:
        folder = request.getfixturevalue("t5_dir" if family == "t5" else "llama_dir")
        section = {
            "arch": "blip2_t5_instruct_peft" if family == "t5" else "blip2_vicuna_instruct_peft",
            "vit_model": dict(VIT_SIZES),
            "image_size": 32,
            "vit_precision": "fp32",
            "qformer": dict(QFORMER_SIZES),
            "num_query_token": 4,
            "qformer_tokenizer": str(bert_dir),
            "t5_model" if family == "t5" else "llm_model": str(folder),
            "llm_precision": "fp32",
            "load_pretrained": False,
        }
        return {**section, **changes}

    return make


LORA = {"peft_type": "LORA", "sublayers": ["self_attention", "cross_attention", "ffn"], "r": 2, "lora_alpha": 4}


@pytest.fixture
def qformer_lora() -> dict[str, Any]:
    """An adapters section: LoRA on every sub-layer of the Q-Former."""
    return {"qformer": dict(LORA), "llm": "frozen"}


COLORS = ("red", "blue")


def _write_questions(folder: Path, split: str, count: int) -> Path:
    from PIL import Image

    records = []
    for number in range(count):
        color = COLORS[number * 7 % 3 % 2]
        Image.new("RGB", (32, 32), color).save(folder / f"{split}{number}.png")
        question = {"question": "what color is the picture ?", "answer": color, "choices": list(COLORS)}
        records.append({"image": f"{split}{number}.png", **question})
    path = folder / f"{split}.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def run_file(
    tmp_path: Path, model_section: Callable[..., dict[str, Any]], qformer_lora: dict[str, Any]
) -> Callable[..., Path]:
    """Write a run config of a T5 with small random parts, on plain red and blue pictures.

    ``run_file(max_epoch=2, …)`` replaces keys of the `run` section (None removes one); ``sizes={"test": 5}`` sets how
    many questions a split has, 0 leaves it out.
    """

    def make(sizes: dict[str, int] | None = None, model: dict[str, Any] | None = None, **run: Any) -> Path:
        import yaml

        from lavis_peft import compat

        compat.apply()  # before transformers, for the parts that are made below
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        counts = {"train": 12, "val": 4, "test": 5, **(sizes or {})}
        files = {split: {"storage": str(_write_questions(data, split, n))} for split, n in counts.items() if n}
        pictures = {"name": "peft_image", "image_size": 32}
        section = {
            "runner": "runner_peft",
            "task": "multiple_choice_vqa",
            "max_epoch": 2,
            "init_lr": 1e-2,
            "batch_size_train": 4,
            "lr_sched": "linear_decay_lr",
            "device": "cpu",
            "num_workers": 0,
            "valid_splits": ["val"],
            "test_splits": ["test"],
            "output_dir": str(tmp_path / "output"),
            "tensorboard": False,
            **run,
        }
        config = {
            "model": model_section("t5", model_type="flant5xl", adapters=qformer_lora, **(model or {})),
            "datasets": {
                "instruct_json": {
                    "vis_processor": {"train": pictures, "eval": pictures},
                    "build_info": {"annotations": files},
                }
            },
            "run": {key: value for key, value in section.items() if value is not None},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return make


def _neighbour(path: str) -> Any:
    """A module of the tests by its path; under --import-mode=importlib they can't import one another."""
    place = Path(__file__).parent / path
    spec = importlib.util.spec_from_file_location(f"_tests_{place.stem}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def official_download(tmp_path: Path) -> Callable[..., Path]:
    """Write a small download in a benchmark's official layout.

    ``official_download("scienceqa")`` gives its folder; ``sizes={"train": 12, "val": 4, "test": 4}`` sets how many
    questions a split has.
    """
    official = _neighbour("prepare/official.py")

    def make(name: str, sizes: dict[str, int] | None = None) -> Path:
        root = tmp_path / f"{name}_download"
        official.WRITERS[name](root, sizes or official.SIZES)
        return root

    return make


@pytest.fixture
def research_config() -> Callable[..., dict[str, Any]]:
    """Make a run config in the research code's form; see ``research/old_configs.py``."""
    return _neighbour("research/old_configs.py").config


@pytest.fixture
def research_run(tmp_path: Path) -> Callable[..., Path]:
    """Write such a config for the tiny model, with a few pictures and their annotations in its form."""
    old_configs = _neighbour("research/old_configs.py")

    def make(arch: str, run: dict[str, Any] | None = None, **changes: Any) -> Path:
        return old_configs.write_run(tmp_path, arch, run, **changes)

    return make


@pytest.fixture
def hub() -> Iterator[Any]:
    """A Hugging Face hub on this machine; see `hf/server.py`."""
    with _neighbour("hf/server.py").Hub() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """Starts real processes in milliseconds; see `processes.py`."""
    starter = _neighbour("processes.py").Nursery()
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def driver() -> Any:
    """The module `faults/driver.py`, which kills runs."""
    return _neighbour("faults/driver.py")


@pytest.fixture(scope="session")
def left_alone(driver: Any, nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What runs come to that nobody interrupts; see `faults/driver.py`."""
    return driver.LeftAlone(nursery, tmp_path_factory.mktemp)
