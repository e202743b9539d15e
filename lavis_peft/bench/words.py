"""Vocabularies of made-up words, so that a text has exactly as many tokens as words, and no download is needed."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

#: Rows that the published models' embeddings have besides, up to a round number.
_ROUND = 128


@dataclass(frozen=True)
class Vocabulary:
    """Words ``w0``, ``w1``, …

    Args:
        size: How many.
    """

    size: int

    def words(self) -> list[str]:
        """All of them."""
        return [f"w{number}" for number in range(self.size)]

    def text(self, length: int, generator: random.Random) -> str:
        """A text of so many words."""
        return " ".join(f"w{generator.randrange(self.size)}" for _ in range(length))

    def bert(self, folder: Path) -> str:
        """Write a BERT tokenizer; returns its folder."""
        folder.mkdir(exist_ok=True)
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "vocab.txt").write_text("\n".join([*marks, *self.words()]) + "\n")
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return str(folder)

    def language_model(self, folder: Path, family: str) -> int:
        """Write a T5's or a LLaMA's tokenizer; returns the rows of an embedding for it."""
        from tokenizers import Tokenizer, pre_tokenizers
        from tokenizers.models import WordLevel
        from tokenizers.processors import TemplateProcessing

        folder.mkdir(exist_ok=True)
        t5 = family == "t5"
        marks = ["<pad>", "</s>", "<unk>"] if t5 else ["<unk>", "<s>", "</s>"]
        names = {"eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": "<pad>"} if t5 else {"bos_token": "<s>"})}
        ids = {word: number for number, word in enumerate([*marks, *self.words()])}
        tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        single, mark = ("$A </s>", "</s>") if t5 else ("<s> $A", "<s>")
        tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[(mark, ids[mark])])
        tokenizer.add_special_tokens(marks)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return -(-len(ids) // _ROUND) * _ROUND if t5 else len(ids)
