"""Stand-alone parts with the layer names of LAVIS's Q-Former, of T5 and of LLaMA."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lavis_peft import compat

# peft imports transformers, which on some stacks needs a patch first.
compat.apply()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lavis_peft.adapters.methods import known_peft_types  # noqa: E402
from lavis_peft.adapters.schedule import Schedule  # noqa: E402
from lavis_peft.adapters.spec import AdapterSpec, parse_adapters  # noqa: E402
from lavis_peft.adapters.sublayers import layer_of, resolve, word_of  # noqa: E402


class Tree(nn.Module):
    """A module that is nothing but its named children."""

    def __init__(self, /, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, hidden: Tensor) -> Tensor:
        for child in self.children():
            if not isinstance(child, nn.Embedding):
                hidden = child(hidden)
        return hidden


def _attention(width: int, source: int) -> Tree:
    projections = {"query": nn.Linear(width, width), "key": nn.Linear(source, width), "value": nn.Linear(source, width)}
    return Tree(self=Tree(**projections), output=Tree(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width)))


def _layer(number: int, width: int, inner: int, source: int) -> Tree:
    children: dict[str, nn.Module] = {"attention": _attention(width, width)}
    if number % 2 == 0:
        children["crossattention"] = _attention(width, source)
    for branch in ("", "_query"):
        children[f"intermediate{branch}"] = Tree(dense=nn.Linear(width, inner))
        children[f"output{branch}"] = Tree(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width))
    return Tree(**children)


@pytest.fixture
def make_qformer() -> Callable[..., Tree]:
    """Make a module with the layers of ``Qformer.bert``; without arguments, a small one that can be called."""

    def make(layers: int = 4, width: int = 16, inner: int = 32, source: int = 16, words: int = 20) -> Tree:
        torch.manual_seed(0)
        embeddings = Tree(
            word_embeddings=nn.Embedding(words, width),
            position_embeddings=nn.Embedding(512, width),
            LayerNorm=nn.LayerNorm(width),
        )
        stack = nn.Sequential(*(_layer(number, width, inner, source) for number in range(layers)))
        return Tree(embeddings=embeddings, encoder=Tree(layer=stack))

    return make


@pytest.fixture
def make_llm() -> Callable[[str], nn.Module]:
    """Make a two-layer language model of transformers: ``t5`` (gated), ``t5-ungated`` or ``llama``."""

    def make(kind: str) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        if kind == "llama":
            if not hasattr(transformers, "LlamaForCausalLM"):
                pytest.skip("this transformers has no LLaMA")
            sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
        gate = "gated-gelu" if kind == "t5" else "relu"
        sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2, "feed_forward_proj": gate}
        config = transformers.T5Config(vocab_size=32, decoder_start_token_id=0, **sizes)
        return transformers.T5ForConditionalGeneration(config)

    return make


@pytest.fixture
def lora() -> Callable[..., AdapterSpec]:
    """Make the spec of a LoRA on the Q-Former; keywords are its YAML keys."""

    def make(**keys: object) -> AdapterSpec:
        section = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **keys}
        if "target_modules" not in section:
            section.setdefault("sublayers", ["self_attention", "cross_attention", "ffn"])
        return parse_adapters({"qformer": section}, llm_family="t5").qformer

    return make


#: Settings for layers of 16 and 32 numbers, where peft's defaults are for greater ones.
_SMALL: dict[str, dict[str, object]] = {
    "ADAMSS": {"r": 8, "num_subspaces": 3, "subspace_rank": 2},
    "ADALORA": {"init_r": 4, "target_r": 2, "lora_alpha": 5},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 40},
    # Words whose layers of a kind are of one size.
    "FROD": {"sublayers": ["self_attention", "ffn"], "sparse_rate": 0.1, "progressbar": False},
    "GRALORA": {"r": 4},
    "MISS": {"r": 8},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.9},
    "VBLORA": {"vector_length": 8, "num_vectors": 12},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 40},
}


@pytest.fixture
def small_spec() -> Callable[..., AdapterSpec]:
    """Make the spec of any method for a small Q-Former; keywords are its YAML keys. Skips what this peft hasn't."""

    def make(kind: str, **keys: object) -> AdapterSpec:
        if kind not in known_peft_types():
            pytest.skip(f"the installed peft has no {kind}")
        section = {"peft_type": kind, "sublayers": ["self_attention", "cross_attention", "ffn"]}
        section |= {**_SMALL.get(kind, {}), **keys}
        if "target_modules" in keys:
            del section["sublayers"]
        return parse_adapters({"qformer": section}, llm_family="t5").qformer

    return make


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Give every trainable parameter of a module values as training would."""

    def train(module: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return module

    return train


#: What a rank of a sub-layer is worth to the allocator below.
_WORTH = {"self_attention": 4, "cross_attention": 8, "ffn.query": 2, "ffn.text": 1, "attention": 3, "ffn": 1.5}


@pytest.fixture
def make_history(
    make_qformer: Callable[..., Tree], make_llm: Callable[[str], nn.Module]
) -> Callable[..., dict[str, Any]]:
    """Make the history of a run on a Q-Former of 12 layers, and on a small T5 if asked for.

    Allocations are at steps 20, 30 … 70 of 100. Later layers and certain words are worth more; `worth` changes that.
    """
    families = {"qformer": "qformer", "llm": "t5"}
    words = {"qformer": ("self_attention", "cross_attention", "ffn"), "llm": ("attention", "ffn")}

    def entries(part: str, initial: int) -> list[dict[str, Any]]:
        family, module = families[part], make_qformer(layers=12) if part == "qformer" else make_llm("t5")
        adapted = {name for names in resolve(module, family, words[part]).values() for name in names}
        shapes = {name: layer.weight.shape for name, layer in module.named_modules() if name in adapted}
        return [
            {
                "part": part,
                "name": name,
                "word": word_of(family, name),
                "layer": layer_of(family, name),
                "init_r": initial,
                "price": sum(shape),
            }
            for name, shape in shapes.items()
        ]

    def allocate(scores: list[list[float]], mine: Sequence[int], budget: int, ranks: list[int]) -> None:
        best = sorted(((score, n) for n in mine for score in scores[n]), reverse=True)[:budget]
        for n in mine:
            ranks[n] = sum(owner == n for _, owner in best)

    def make(
        pools: Sequence[Sequence[str]] = (("qformer",),),
        initial: int = 8,
        target: int = 4,
        until: int = 100,
        worth: dict[str, float] | None = None,
    ) -> dict[str, Any]:
        layers = [entry for parts in pools for part in parts for entry in entries(part, initial)]
        values = {**_WORTH, **(worth or {})}
        scores = [[values[each["word"]] * (6 + each["layer"]) / (3 + j) for j in range(initial)] for each in layers]
        schedule, ranks, changes = Schedule(100, 15, 30, 10), [initial] * len(layers), []
        members = [[n for n, each in enumerate(layers) if each["part"] in parts] for parts in pools]
        for step in filter(schedule.allocates, range(1, until + 1)):
            before = list(ranks)
            for mine in members:
                allocate(scores, mine, schedule.budget(step, initial * len(mine), target * len(mine)), ranks)
            changes += [[step, n, rank] for n, rank in enumerate(ranks) if rank != before[n]]
        known = until >= 20
        kept = [sum(sorted(each)[-rank:]) / rank if rank else None for each, rank in zip(scores, ranks, strict=True)]
        return {
            "version": 1,
            "unit": "rank",
            "step": until,
            "layers": layers,
            "pools": [
                {
                    "parts": list(parts),
                    **asdict(schedule),
                    "initial": initial * len(mine),
                    "target": target * len(mine),
                }
                for parts, mine in zip(pools, members, strict=True)
            ],
            "changes": changes,
            "ranks": ranks,
            "importance": [sum(each) / initial if known else None for each in scores],
            "importance_kept": kept if known else [None] * len(layers),
        }

    return make


@pytest.fixture
def by_hand() -> Callable[..., dict[str, Any]]:
    """Make a history of three layers of rank 4, of which 4, 2 and 0 ranks stay; keywords replace its keys."""

    def make(**changes: Any) -> dict[str, Any]:
        names = ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value")
        layers = [
            {"part": "qformer", "name": name, "word": "self_attention", "layer": n, "init_r": 4, "price": 10}
            for n, name in enumerate(names)
        ]
        text = "encoder.layer.1.intermediate.dense"
        layers.append({"part": "qformer", "name": text, "word": "ffn.text", "layer": 1, "init_r": 4, "price": 30})
        phases = {"total_step": 10, "tinit": 2, "tfinal": 4, "deltaT": 2}
        history = {
            "version": 1,
            "unit": "rank",
            "step": 10,
            "layers": layers,
            "pools": [{"parts": ["qformer"], **phases, "initial": 12, "target": 6}],
            "changes": [[4, 1, 3], [4, 2, 1], [6, 1, 2], [6, 2, 0]],
            "ranks": [4, 2, 0],
            "importance": [0.5, 0.25, 0.0],
            "importance_kept": [0.5, 0.375, None],
        }
        return {**history, **changes}

    return make


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a run's folder with a history in it; what isn't text becomes JSON."""

    def make(history: object, name: str = "run") -> Path:
        folder = tmp_path / name
        (folder / "result").mkdir(parents=True)
        text = history if isinstance(history, str) else json.dumps(history)
        (folder / "result" / "adalora_history.json").write_text(text, encoding="utf-8")
        return folder

    return make
