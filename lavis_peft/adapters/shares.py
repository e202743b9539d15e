"""Where the rank of an AdaLoRA run went: sums of its history, by sub-layer and by layer. Pure functions.

Words used throughout: a *share* is a sub-layer word of one part with all its layers; its percentages are of the budget
that it draws on, so those of one budget add up to 100.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavis_peft.adapters.history import table

#: Sub-layer words in the order of reports, as tables and figures call them.
WORDS = {
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "ffn.query": "query-branch FFN",
    "ffn.text": "text-branch FFN",
    "attention": "attention",
    "ffn": "FFN",
    "other": "other",
}
PARTS = {"qformer": "Q-Former", "llm": "LLM"}


@dataclass(frozen=True)
class Layer:
    """An adapted linear layer.

    Args:
        part: ``qformer`` or ``llm``.
        stack: ``encoder`` or ``decoder`` where a part has both, each numbering its layers from 0; else empty.
        layer: Number from 0; None outside the stack.
        word: The sub-layer.
        projection: Which of the sub-layer's linear layers it is.
        name: Full name below the part.
        initial_rank: At the start of training.
        final_rank: Now.
        importance: Mean over all its triplets at the last allocation; None before the first.
        importance_kept: The same over those that stay; None where none does.
        parameters: What ``final_rank`` costs, as plain LoRA.
        price: Parameters of one rank.
        dead: Nothing reads what it computes: the text branch of the Q-Former's last layer.
    """

    part: str
    stack: str
    layer: int | None
    word: str
    projection: str
    name: str
    initial_rank: int
    final_rank: int
    importance: float | None
    importance_kept: float | None
    parameters: int
    price: int
    dead: bool


def layers_of(history: Mapping[str, Any]) -> list[Layer]:
    """The adapted layers with what became of them.

    Args:
        history: As `read_history` gives it.
    """
    entries = history["layers"]
    roots = {(entry["part"], root) for entry in entries for root in _roots(entry["name"])}
    both = {part for part in PARTS if {(part, "encoder"), (part, "decoder")} <= roots}
    numbers = [entry["layer"] for entry in entries if entry["part"] == "qformer" and entry["layer"] is not None]
    columns = (history[key] for key in ("ranks", "importance", "importance_kept"))
    return [
        Layer(
            part=entry["part"],
            stack=next(iter(_roots(entry["name"])), "") if entry["part"] in both else "",
            layer=entry["layer"],
            word=entry["word"],
            projection=_projection(entry["name"], entry["word"]),
            name=entry["name"],
            initial_rank=entry["init_r"],
            final_rank=rank,
            importance=importance,
            importance_kept=kept,
            parameters=rank * entry["price"],
            price=entry["price"],
            dead=entry["part"] == "qformer"
            and entry["word"] == "ffn.text"
            and entry["layer"] == max(numbers, default=-1),
        )
        for entry, rank, importance, kept in zip(entries, *columns, strict=True)
    ]


def _roots(name: str) -> list[str]:
    return [piece for piece in name.split(".") if piece in ("encoder", "decoder")]


def _projection(name: str, word: str) -> str:
    if word == "other":
        return re.sub(r"\.\d+(?=\.|$)", ".*", name)
    last = name.removesuffix(".dense").rpartition(".")[2].removesuffix("_query")
    # A T5 decoder's layer has both attentions, and the word takes them together.
    return f"cross {last}" if "EncDecAttention" in name else last


def title(part: str, word: str, parts: Iterable[str]) -> str:
    """What a share is called; its part is named only where there are several."""
    label = WORDS.get(word, word)
    return f"{PARTS.get(part, part)} {label}" if len(set(parts)) > 1 else label


def grouped(layers: Iterable[Layer], key: Callable[[Layer], Any]) -> dict[Any, list[Layer]]:
    """The layers by a key, in the order of parts, stacks and words."""
    groups: dict[Any, list[Layer]] = {}
    for layer in sorted(layers, key=lambda each: (_place(PARTS, each.part), _place(WORDS, each.word))):
        groups.setdefault(key(layer), []).append(layer)
    return groups


def _place(names: Mapping[str, str], name: str) -> int:
    # What a later version may add comes last.
    return list(names).index(name) if name in names else len(names)


def shares(history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each sub-layer's share of its budget, at the start and now.

    Args:
        history: As `read_history` gives it.

    Returns:
        For each ``part`` and ``word``: ``pool`` (number of its budget), ``layers``, ``initial`` and ``final``, each
        with ``ranks``, ``parameters``, ``percent_of_ranks`` and ``percent_of_parameters``; and ``importance``, the
        mean over all triplets, null before the first allocation.
    """
    pools = {part: number for number, pool in enumerate(history["pools"]) for part in pool["parts"]}
    layers, rows = layers_of(history), []
    for (part, word), group in grouped(layers, lambda each: (each.part, each.word)).items():
        together = [each for each in layers if pools[each.part] == pools[part]]
        row: dict[str, Any] = {"part": part, "word": word, "pool": pools[part], "layers": len(group)}
        for when, ranks in (("initial", lambda each: each.initial_rank), ("final", lambda each: each.final_rank)):
            row[when] = _portion(group, together, ranks)
        row["importance"] = mean_importance(group)
        rows.append(row)
    return rows


def _portion(group: Sequence[Layer], together: Sequence[Layer], rank: Callable[[Layer], int]) -> dict[str, Any]:
    portion: dict[str, Any] = {}
    for unit, price in (("ranks", lambda each: 1), ("parameters", lambda each: each.price)):
        mine, every = (sum(rank(each) * price(each) for each in these) for these in (group, together))
        portion |= {unit: mine, f"percent_of_{unit}": 100 * mine / every if every else 0.0}
    return portion


def mean_importance(layers: Iterable[Layer]) -> float | None:
    """The mean over all triplets of layers; None before the first allocation."""
    known = [(each.importance, each.initial_rank) for each in layers if each.importance is not None]
    triplets = sum(count for _, count in known)
    return sum(mean * count for mean, count in known) / triplets if triplets else None


def per_layer(layers: Iterable[Layer]) -> list[dict[str, Any]]:
    """Ranks now, summed by layer and sub-layer word.

    Args:
        layers: Of one run.

    Returns:
        For each ``part``, ``stack`` and ``layer``, those without a number last: ``ranks``, word -> sum. A word that
        isn't adapted there is left out.
    """
    groups = grouped(layers, lambda each: (each.part, each.stack, each.layer))
    rows = []
    for part, stack, number in sorted(
        groups, key=lambda at: (_place(PARTS, at[0]), at[1] == "decoder", _number(at[2]))
    ):
        words = grouped(groups[part, stack, number], lambda each: each.word)
        ranks = {word: sum(each.final_rank for each in these) for word, these in words.items()}
        rows.append({"part": part, "stack": stack, "layer": number, "ranks": ranks})
    return rows


def _number(layer: int | None) -> float:
    return math.inf if layer is None else layer


def shares_over_training(history: Mapping[str, Any], pool: int) -> tuple[list[int], dict[tuple[str, str], list[int]]]:
    """What each sub-layer of one budget had after each allocation, in the budget's unit.

    Args:
        history: As `read_history` gives it.
        pool: The budget's number.

    Returns:
        The steps, from 0; and for each part and word as many amounts.
    """
    steps, rows = table(history)
    prices = [layer["price"] if history["unit"] == "parameters" else 1 for layer in history["layers"]]
    layers, parts = layers_of(history), history["pools"][pool]["parts"]
    keys = grouped((each for each in layers if each.part in parts), lambda each: (each.part, each.word))
    mine = {key: [n for n, each in enumerate(layers) if (each.part, each.word) == key] for key in keys}
    return steps, {key: [sum(row[n] * prices[n] for n in numbers) for row in rows] for key, numbers in mine.items()}
