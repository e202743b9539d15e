"""The document with every setting's parameter counts."""

from collections.abc import Iterable, Mapping, Sequence

from lavis_peft.experiments.counts import SettingCount
from lavis_peft.experiments.settings import LLM_TITLES, Setting

_HEAD = """\
# What each setting trains, in parameters

The 64 settings of Kim et al. 2024 at their published sizes: EVA ViT-g, the Q-Former with its {qformer:,} parameters,
and FLAN-T5-XL or Vicuna-7B. Every number is counted in the modules that a run of the setting trains, built without
weights, as `lavis-peft inspect` does. On ScienceQA and on IconQA a setting differs in learning rate and epochs alone,
so the counts hold for both, and for any other data.

`query_tokens`, `ln_vision` and the projection to the language model train in every setting, besides what is adapted
(the column "besides"). The two percentages count different things:

- **of full tuning**: everything the setting trains, per hundred of everything that full tuning of the Q-Former trains
  on the same language model. Both sides include `query_tokens`, `ln_vision` and the projection.
- **adapters alone**: the adapters, wherever they are, per hundred of the Q-Former's {qformer:,} parameters.

In the settings with LoRA on the language model alone (1–12, 33–44) the research code trains the Q-Former in full, so
they train more than full tuning of the Q-Former does. Of the adapters of the Q-Former's feed-forward layers,
2 · r · (768 + 3,072) parameters in the text branch of the last layer never get a gradient, because nothing reads that
branch's output; they are counted here as the paper counts them.
"""

_CLAIMS = """\
## The paper's percentages

| | FLAN-T5-XL | Vicuna-7B |
| --- | ---: | ---: |
{rows}

The paper says that LoRA on the Q-Former takes under 2 % of the parameters of its full tuning, and LoRA on both under
12 %. Counted as adapters alone, the first holds on both language models. With `query_tokens`, `ln_vision` and the
projection on both sides it holds on FLAN-T5-XL, and not on Vicuna-7B, whose projection is twice as wide. The second
holds in both ways of counting.
"""


def document(settings: Mapping[str, Setting], counts: Iterable[SettingCount]) -> str:
    """The document, in Markdown.

    Args:
        settings: By key.
        counts: Of the numbered settings, in their order.
    """
    by_llm: dict[str, list[SettingCount]] = {llm: [] for llm in LLM_TITLES}
    for each in counts:
        by_llm[settings[each.key].llm].append(each)
    qformer = next(each.qformer_total for every in by_llm.values() for each in every)
    parts = [_HEAD.format(qformer=qformer), _claims(settings, by_llm)]
    parts += [_table(llm, settings, every) for llm, every in by_llm.items()]
    command = "lavis-peft experiments counts --output projects/paper/PARAMETERS.md"
    return "\n".join([*parts, f"Written by `{command}`.\n"])


def _claims(settings: Mapping[str, Setting], by_llm: Mapping[str, Sequence[SettingCount]]) -> str:
    rows = []
    for part, name in (("qformer", "Q-Former LoRA"), ("both", "Q-Former and LLM LoRA")):
        for words, value in (
            ("of full tuning", "percent_of_full_tuning"),
            ("adapters alone", "adapters_percent_of_qformer"),
        ):
            most = [
                max(getattr(each, value) for each in every if settings[each.key].part == part)
                for every in by_llm.values()
            ]
            rows.append(f"| {name}, {words}, at most | " + " | ".join(f"{share:.2f} %" for share in most) + " |")
    return _CLAIMS.format(rows="\n".join(rows))


def _table(llm: str, settings: Mapping[str, Setting], counts: Sequence[SettingCount]) -> str:
    full = counts[0].full_tuning
    lines = [
        f"## {LLM_TITLES[llm]}",
        "",
        f"Full tuning of the Q-Former (`full-{llm}`) trains {full:,} parameters, {counts[0].besides:,} of them",
        "in `query_tokens`, `ln_vision` and the projection.",
        "",
        "| | setting | r | in the Q-Former | in the LLM | besides | trained | of full tuning | adapters alone |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in counts:
        setting = settings[each.key]
        row = setting.row.replace(f", {LLM_TITLES[llm]})", ")")
        numbers = (each.qformer, each.llm, each.besides, each.trained)
        shares = (each.percent_of_full_tuning, each.adapters_percent_of_qformer)
        cells = [each.key, row, str(setting.rank), *(f"{n:,}" for n in numbers), *(f"{s:.2f} %" for s in shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
