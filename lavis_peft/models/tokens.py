"""Texts as padded tokens, each text tokenised once: from a run's second epoch on, nothing is tokenised anew."""

from array import array
from collections.abc import Sequence
from typing import Any

#: Most memory for tokens and their texts, about 90,000 prompts of 150 tokens, each for two tokenizers.
CACHE_BYTES = 256 << 20

#: What Python needs for a text, an array and their place in a dictionary, besides letters and numbers.
_OVERHEAD = 49 + 80 + 104
#: What transformers calls the warning that a fast tokenizer pads quickest when it tokenises.
_PADDING_WARNING = "Asking-to-pad-a-fast-tokenizer"


class TokenCache:
    """Remembers the tokens of texts, per tokenizer and per way of cutting them.

    When it is full, what it has stays and nothing is added. A cache that drops what was used longest ago, which is the
    usual kind, finds next to nothing in an epoch that is longer than itself; this one finds its share of every epoch.

    A tokenizer must not be changed after its first use here, but for its sides of padding and of cutting.

    Args:
        size: Most bytes; 0 remembers nothing.
    """

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._free = size
        self._known: dict[tuple[int, str, int | None], tuple[Any, dict[str, array[int]]]] = {}

    def __call__(self, tokenizer: Any, texts: Sequence[str], most: int | None = None) -> Any:
        """What the tokenizer itself gives for the texts, padded to the longest on its side, as tensors.

        Args:
            tokenizer: A tokenizer of transformers.
            texts: B texts.
            most: Longest row, in tokens; longer ones are cut on the tokenizer's side. None cuts nothing.

        Returns:
            ``input_ids`` and ``attention_mask``, each (B, longest), on the CPU.
        """
        known = self._of(tokenizer, most)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        limit = {} if most is None else {"truncation": True, "max_length": most}
        found = dict(zip(missing, tokenizer(missing, **limit)["input_ids"], strict=True)) if missing else {}
        rows = [found[text] if text in found else known[text].tolist() for text in texts]
        for text, ids in found.items():
            self._remember(known, text, ids)
        if tokenizer.is_fast:
            getattr(tokenizer, "deprecation_warnings", {})[_PADDING_WARNING] = True
        return tokenizer.pad({"input_ids": rows}, padding="longest", return_tensors="pt")

    def _of(self, tokenizer: Any, most: int | None) -> dict[str, "array[int]"]:
        key = (id(tokenizer), tokenizer.truncation_side, most)
        # The tokenizer is held, so that its id can't become another's; in a copied model it is another's already.
        held, known = self._known.get(key, (None, {}))
        if held is not tokenizer:
            known = {}
            self._known[key] = tokenizer, known
        return known

    def _remember(self, known: dict[str, "array[int]"], text: str, ids: Sequence[int]) -> None:
        tokens = array("i", ids)
        size = len(text) + len(tokens) * tokens.itemsize + _OVERHEAD
        if size <= self._free:
            self._free -= size
            known[text] = tokens
