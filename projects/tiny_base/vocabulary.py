"""Makes the tokenizers of the tiny base: one WordPiece vocabulary, three sets of special tokens.

The files are written as plain JSON rather than by the `tokenizers` library, whose format grows with its version;
0.13 and 0.23 both read these.
"""

import json
import re
import string
from pathlib import Path
from typing import Any

import instructions
from pictures import COLOR_NAMES, SHAPES

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_SPECIAL = ("<pad>", "</s>", "<unk>")
LLAMA_SPECIAL = ("<unk>", "<s>", "</s>")
# What the evaluation asks and answers with, beyond our own instructions; its questions themselves are not used.
_MORE_WORDS = "question short answer context option options choice image there what present contain shape in not an"
_TEMPLATES = ("COLOR_OF", "SHAPE_OF", "SHOWS", "LACKS", "NOT_COLOR", "NOT_SHAPE", "MATCHES", "COUNT_ALL", "COUNT_SOME",
              "WHERE", "AT", "CAPTION", "PRESENT", "NUMBERS", "WRAPPERS", "_ROWS", "_COLUMNS")  # fmt: skip


def words() -> list[str]:
    """Every word and sign of the instructions and their answers, sorted, then letters and digits for the rest."""
    known = {"and", "object", "thing", "only", *COLOR_NAMES, *SHAPES, *_MORE_WORDS.split()}
    for name in _TEMPLATES:
        for template in getattr(instructions, name):
            known.update(re.findall(r"\w+", template.replace("{}", " ")))
    signs = [sign for sign in string.punctuation if sign not in "{}"]
    letters = string.ascii_lowercase + string.digits
    known.update({"yes", "no"} | set(signs) | set(letters))
    return sorted(known) + [f"##{letter}" for letter in letters]


def write_bert(folder: Path) -> int:
    """Write the Q-Former's tokenizer; returns the vocabulary's size without the `[DEC]` that LAVIS adds."""
    vocabulary = [*BERT_SPECIAL, *words()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True,
                                              "model_max_length": 160})  # fmt: skip
    post = _template([("[CLS]", 2)], [("[SEP]", 3)])
    _write(folder / "tokenizer.json", _tokenizer(vocabulary, BERT_SPECIAL, "[UNK]", post))
    return len(vocabulary)


def write_t5(folder: Path) -> int:
    """Write the tiny T5's tokenizer: pad 0, end 1, unknown 2; it appends the end. Returns the vocabulary's size."""
    vocabulary = [*T5_SPECIAL, *words()]
    post = _template([], [("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_fast(folder, _tokenizer(vocabulary, T5_SPECIAL, "<unk>", post), names)
    return len(vocabulary)


def write_llama(folder: Path) -> int:
    """Write the tiny LLaMA's tokenizer: unknown 0, begin 1, end 2; it prepends the begin. Returns the size."""
    vocabulary = [*LLAMA_SPECIAL, *words()]
    post = _template([("<s>", 1)], [])
    # Like LLaMA's own, it has no padding token: InstructBLIP adds one and resizes the embeddings.
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_fast(folder, _tokenizer(vocabulary, LLAMA_SPECIAL, "<unk>", post), names)
    return len(vocabulary)


def _write_fast(folder: Path, tokenizer: dict[str, Any], names: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "tokenizer.json", tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 160,
        "model_input_names": ["input_ids", "attention_mask"],
        **names,
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", names)


def _tokenizer(vocabulary: list[str], special: tuple[str, ...], unknown: str, post: dict[str, Any]) -> dict[str, Any]:
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **marks} for number, token in enumerate(special)],
        "normalizer": {**bert, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(vocabulary)},
        },
    }


def _template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> dict[str, Any]:
    def special(token: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        inner = {"Sequence": {"id": name, "type_id": kind}}
        head = [special(token, kind) for token, _ in before] if name == "A" else []
        return [*head, inner, *(special(token, kind) for token, _ in after)]

    tokens = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in before + after}
    single = sequence("A", 0)
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *sequence("B", 1)],
            "special_tokens": tokens}  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
