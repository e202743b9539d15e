"""Stand-alone parts with the layer names of LAVIS's Q-Former, of T5 and of LLaMA."""

from collections.abc import Callable

import pytest

from lavis_peft import compat

# peft imports transformers, which on some stacks needs a patch first.
compat.apply()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lavis_peft.adapters.spec import AdapterSpec, parse_adapters  # noqa: E402


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
