"""The paper's words for sub-layers, and the linear layers, or norms, each of them stands for.

This table is the only place that knows how a backbone names its layers. A word is a set of single projections, and
`attention.q` style words name one of them, so `ffn` and `[ffn.query, ffn.text]` are the same thing. For a method that
trains norms, a word is the norms of that sub-layer: in the Q-Former those after it, in T5 and LLaMA those before.
"""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError

# A layer's name below the part may carry a prefix: the same table serves `T5ForConditionalGeneration` and a bare stack.
_ANY = r"(?:.*\.)?"
_QFORMER_LAYER = _ANY + r"layer\.\d+\."


def _singles(word: str, prefix: str, projections: Mapping[str, str]) -> dict[str, str]:
    return {f"{word}.{name}": prefix + pattern for name, pattern in projections.items()}


_ATTENTION = {"query": r"self\.query", "key": r"self\.key", "value": r"self\.value", "output": r"output\.dense"}

_QFORMER = {
    **_singles("self_attention", _QFORMER_LAYER + r"attention\.", _ATTENTION),
    **_singles("cross_attention", _QFORMER_LAYER + r"crossattention\.", _ATTENTION),
    # Queries and text tokens share self-attention and then take feed-forward branches of their own.
    "ffn.query": _QFORMER_LAYER + r"(?:intermediate_query|output_query)\.dense",
    "ffn.text": _QFORMER_LAYER + r"(?:intermediate|output)\.dense",
}
_T5 = {
    **_singles("attention", _ANY + r"(?:SelfAttention|EncDecAttention)\.", {name: name for name in "qkvo"}),
    # T5 v1.0 has one input projection, `wi`; v1.1 and FLAN are gated and have two.
    **_singles("ffn", _ANY + r"DenseReluDense\.", {name: name for name in ("wi", "wi_0", "wi_1", "wo")}),
}
_LLAMA = {
    **_singles("attention", _ANY + r"self_attn\.", {name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}),
    **_singles("ffn", _ANY + r"mlp\.", {name: name for name in ("gate_proj", "up_proj", "down_proj")}),
}

# family -> single projection -> pattern of full module names
_PROJECTIONS: dict[str, dict[str, str]] = {"qformer": _QFORMER, "t5": _T5, "llama": _LLAMA}

# family -> word -> the single projections it stands for. The paper adapts query and value in self-attention (as LoRA's
# authors do) but all four projections in cross-attention; the plain words mean what the paper means by them.
_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "qformer": {
        "self_attention": ("self_attention.query", "self_attention.value"),
        "self_attention.all": tuple(name for name in _QFORMER if name.startswith("self_attention.")),
        "cross_attention": tuple(name for name in _QFORMER if name.startswith("cross_attention.")),
        "ffn": ("ffn.query", "ffn.text"),
    },
    "t5": {
        "attention": ("attention.q", "attention.v"),
        "attention.all": tuple(name for name in _T5 if name.startswith("attention.")),
        "ffn": tuple(name for name in _T5 if name.startswith("ffn.")),
    },
    "llama": {
        "attention": ("attention.q_proj", "attention.v_proj"),
        "attention.all": tuple(name for name in _LLAMA if name.startswith("attention.")),
        "ffn": tuple(name for name in _LLAMA if name.startswith("ffn.")),
    },
}

# The same two tables for norms.
_NORMS: dict[str, dict[str, str]] = {
    "qformer": {
        "self_attention": _QFORMER_LAYER + r"attention\.output\.LayerNorm",
        "cross_attention": _QFORMER_LAYER + r"crossattention\.output\.LayerNorm",
        "ffn.query": _QFORMER_LAYER + r"output_query\.LayerNorm",
        "ffn.text": _QFORMER_LAYER + r"output\.LayerNorm",
        "embeddings": _ANY + r"embeddings\.LayerNorm",
    },
    "t5": {
        # An encoder's block is attention and feed-forward network; a decoder's has cross-attention between the two.
        "attention": _ANY + r"(?:encoder\.block\.\d+\.layer\.0|decoder\.block\.\d+\.layer\.[01])\.layer_norm",
        "ffn": _ANY + r"(?:encoder\.block\.\d+\.layer\.1|decoder\.block\.\d+\.layer\.2)\.layer_norm",
        "final": _ANY + r"final_layer_norm",
    },
    "llama": {
        "attention": _ANY + r"layers\.\d+\.input_layernorm",
        "ffn": _ANY + r"layers\.\d+\.post_attention_layernorm",
        "final": _ANY + r"norm",
    },
}
_NORM_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "qformer": {
        "self_attention": ("self_attention",),
        "cross_attention": ("cross_attention",),
        "ffn": ("ffn.query", "ffn.text"),
    },
    "t5": {},
    "llama": {},
}

# family -> what its repeated layers are numbered under
_STACKS = {"qformer": "layer", "t5": "block", "llama": "layers"}

# The layers that lead out of a feed-forward network, in all families; an attention's output isn't one.
_OUTWARD = re.compile(r"(?:(?<!attention)\.output(?:_query)?\.dense|\.wo|\.down_proj)$")

# What of a norm's name begins the copy of it that peft's LN_TUNING trains.
_NORM_COPY = ".ln_tuning_layers."

# What reports call a layer: the paper's sub-layers, with the Q-Former's two branches apart.
_REPORTED = ("ffn.query", "ffn.text")


def allowed_words(family: str, norms: bool = False) -> tuple[str, ...]:
    """The words `sublayers` accepts for a family of backbones, the paper's own first.

    Args:
        family: ``qformer``, ``t5`` or ``llama``.
        norms: For a method that trains norms.
    """
    groups, singles = _tables(family, norms)
    return (*groups, *(name for name in singles if name not in groups))


def kind_of_layer(norms: bool) -> str:
    """What messages call the layers that a method adapts."""
    return "norm" if norms else "linear layer"


def fits(layer: nn.Module, norms: bool) -> bool:
    """Whether a layer is one that a method can adapt.

    A norm is known by its class's name and its vector of weights: T5's and LLaMA's are transformers' own classes, and
    apex, where it is installed, brings others.

    Args:
        layer: Any module.
        norms: For a method that trains norms.
    """
    if not norms:
        return isinstance(layer, nn.Linear)
    weight = getattr(layer, "weight", None)
    return "norm" in type(layer).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1


def resolve(module: nn.Module, family: str, words: Iterable[str], norms: bool = False) -> dict[str, tuple[str, ...]]:
    """The linear layers, or norms, that words stand for.

    Args:
        module: The part; for the Q-Former, ``Qformer.bert``.
        family: ``qformer``, ``t5`` or ``llama``.
        words: Words of `allowed_words`.
        norms: For a method that trains norms.

    Returns:
        For each word the full names, below ``module``, of its layers in the module's order.

    Raises:
        ConfigError: A word is unknown, or matches no layer of this module.
    """
    allowed = allowed_words(family, norms)
    layers = [name for name, layer in module.named_modules() if fits(layer, norms)]
    found: dict[str, tuple[str, ...]] = {}
    problems = []
    for word in words:
        if word not in allowed:
            problems.append(f"unknown sub-layer '{word}'{suggestion(word, allowed)}; allowed: {listing(allowed)}")
            continue
        pattern = _pattern(family, word, norms)
        found[word] = tuple(name for name in layers if pattern.fullmatch(name))
        if not found[word]:
            problems.append(f"sub-layer '{word}' matches no {kind_of_layer(norms)} of this {type(module).__name__}")
    if problems:
        raise ConfigError(problems)
    return found


def layer_of(family: str, name: str) -> int | None:
    """The number of the layer, counted from 0, that a module or parameter is in; None outside the stack.

    T5 counts its encoder's and its decoder's layers from 0 each.
    """
    found = re.search(rf"(?:^|\.){_STACKS[family]}\.(\d+)\.", name)
    return int(found[1]) if found else None


def word_of(family: str, name: str) -> str:
    """The sub-layer that a module or parameter belongs to, in the words of reports.

    Args:
        family: ``qformer``, ``t5`` or ``llama``.
        name: A dotted name below the part; what follows the linear layer's own name doesn't matter.

    Returns:
        ``self_attention``, ``cross_attention``, ``ffn.query``, ``ffn.text``, ``attention`` or ``ffn``; ``other`` for
        everything that is no linear layer of these (embeddings, norms, heads). The copy of a norm that trains is in
        its norm's sub-layer; ``embeddings`` and ``final`` are such copies outside of the stack.
    """
    norm, copied, _ = name.partition(_NORM_COPY)
    if copied:
        return next(word for word, pattern in [*_NORMS[family].items(), ("other", ".*")] if re.fullmatch(pattern, norm))
    for single, pattern in _PROJECTIONS[family].items():
        if re.match(rf"(?:{pattern})(?:\.|$)", name):
            return single if single in _REPORTED else single.split(".")[0]
    return "other"


def feed_forward_outputs(names: Iterable[str]) -> list[str] | str:
    """The layers among these that lead out of a feed-forward network, as peft's IA3 takes them.

    Args:
        names: Full names of linear layers, of any family.

    Returns:
        A regular expression that matches just them; an empty list where there is none.
    """
    found = [name for name in names if _OUTWARD.search(name)]
    return "|".join(re.escape(name) for name in found) or []


def without_gradient(module: nn.Module, family: str) -> tuple[str, ...]:
    """The parameters that no loss of InstructBLIP can reach.

    The language model reads the queries' last hidden states alone, so the text branch of the Q-Former's last
    feed-forward layer computes something that nobody reads. The paper adapts it and counts it all the same.

    Args:
        module: The part, with or without adapters.
        family: ``qformer``, ``t5`` or ``llama``.

    Returns:
        Names below ``module``.
    """
    if family != "qformer":
        return ()
    names = [name for name, _ in module.named_parameters()]
    last = max((number for name in names if (number := layer_of(family, name)) is not None), default=0)
    dead = re.compile(_ANY + rf"layer\.{last}\.(?:intermediate|output)\..*")
    return tuple(name for name in names if dead.fullmatch(name))


def _tables(family: str, norms: bool) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, str]]:
    return (_NORM_GROUPS[family], _NORMS[family]) if norms else (_GROUPS[family], _PROJECTIONS[family])


def _pattern(family: str, word: str, norms: bool) -> re.Pattern[str]:
    groups, patterns = _tables(family, norms)
    return re.compile("|".join(f"(?:{patterns[single]})" for single in groups.get(word, (word,))))
