"""Parameters of the research code's models, derived by hand from the sizes of layers."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Sizes:
    """Q-Former: width, feed-forward, layers (cross-attention in every second), vocabulary, positions, queries."""

    width: int
    ffn: int
    layers: int
    vocabulary: int
    positions: int
    queries: int
    vision: int
    llm: str
    llm_width: int
    llm_ffn: int
    llm_layers: int

    def full(self) -> int:
        """Every parameter of the Q-Former."""
        w, f, v = self.width, self.ffn, self.vision
        norm = 2 * w
        square = w * w + w
        embeddings = (self.vocabulary + self.positions) * w + norm
        attention = 4 * square + norm
        cross = 2 * square + 2 * (v * w + w) + norm
        branch = (w * f + f) + (f * w + w) + norm
        return embeddings + self.layers * (attention + 2 * branch) + self.layers // 2 * cross

    def qformer_lora(self, r: int) -> int:
        """LoRA on query and value, on the cross-attention's four, and on both branches."""
        w, v = self.width, self.vision
        own = self.layers * 2 * (w + w)
        cross = self.layers // 2 * (2 * (w + w) + 2 * (v + w))
        ffn = self.layers * 2 * 2 * (w + self.ffn)
        return r * (own + cross + ffn)

    def llm_lora(self, r: int) -> int:
        """LoRA on query and value, and on the three matrices of a gated feed-forward layer."""
        w, f = self.llm_width, self.llm_ffn
        # T5: an attention in each encoder layer, two in each decoder layer; `llm_layers` is that of one stack.
        attentions = 3 * self.llm_layers if self.llm == "t5" else self.llm_layers
        ffns = 2 * self.llm_layers if self.llm == "t5" else self.llm_layers
        return r * (attentions * 2 * (w + w) + ffns * 3 * (w + f))

    def extras(self) -> dict[str, int]:
        """What trains besides, in every one of them."""
        return {
            "query_tokens": self.queries * self.width,
            "ln_vision": 2 * self.vision,
            "projection": self.width * self.llm_width + self.llm_width,
        }


_REAL = {"width": 768, "ffn": 3072, "layers": 12, "vocabulary": 30523, "positions": 512, "queries": 32, "vision": 1408}
_TINY = {"width": 96, "ffn": 192, "layers": 4, "positions": 160, "queries": 8, "vision": 96}
_TINY_LLM = {"llm_width": 96, "llm_ffn": 192, "llm_layers": 2}
SIZES = {
    ("real", "t5"): Sizes(**_REAL, llm="t5", llm_width=2048, llm_ffn=5120, llm_layers=24),
    ("real", "vicuna"): Sizes(**_REAL, llm="vicuna", llm_width=4096, llm_ffn=11008, llm_layers=32),
    # 203 words, and [DEC].
    ("tiny", "t5"): Sizes(**_TINY, vocabulary=204, llm="t5", **_TINY_LLM),
    ("tiny", "vicuna"): Sizes(**_TINY, vocabulary=204, llm="vicuna", **_TINY_LLM),
}


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., dict[str, int]]:
    """Trainable parameters of each part of a model with all its sub-layers adapted: ``by_hand("real", arch, r=8)``."""

    def count(size: str, arch: str, r: int) -> dict[str, int]:
        sizes = SIZES[size, "t5" if "t5" in arch else "vicuna"]
        qformer = sizes.qformer_lora(r) if "qformer" in arch else sizes.full()
        llm = 0 if arch.endswith("_instruct_qformer_lora") else sizes.llm_lora(r)
        return {"vision": 0, **sizes.extras(), "qformer": qformer, "llm": llm}

    return count
