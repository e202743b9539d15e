from collections.abc import Callable

import pytest
import torch
from torch import nn

from lavis_peft.adapters.count import count
from lavis_peft.adapters.inject import inject
from lavis_peft.adapters.spec import AdapterSpec

Make = Callable[..., nn.Module]


@pytest.fixture
def published(make_qformer: Make) -> nn.Module:
    """The published Q-Former's shapes, without memory for them."""
    with torch.device("meta"):
        return make_qformer(layers=12, width=768, inner=3072, source=1408, words=30523)


def test_the_papers_lora_on_all_sublayers(published: nn.Module, lora: Callable[..., AdapterSpec]) -> None:
    assert count({"qformer": published}, {}).total == 185_660_160
    spec = lora(sublayers=["self_attention", "cross_attention", "ffn"], r=8, lora_alpha=8)
    inject(published, "qformer", spec, "model.adapters.qformer")
    counted = count({"qformer": published}, {"qformer": "qformer"})
    assert counted.trainable == 2_125_824
    assert counted.total == 185_660_160 + 2_125_824
    # The last layer's text branch: r (768 + 3072) for each of its two layers.
    assert counted.without_gradient == 2 * 8 * (768 + 3072)
    words = {word: each.trainable for word, each in counted.parts["qformer"].sublayers.items()}
    assert words == {
        "other": 0,
        "self_attention": 294_912,
        "cross_attention": 356_352,
        "ffn.text": 737_280,
        "ffn.query": 737_280,
    }
    totals = [each.total for each in counted.parts["qformer"].sublayers.values()]
    assert sum(totals) == counted.total


def test_as_dict_is_what_inspect_prints(published: nn.Module) -> None:
    published.requires_grad_(False)
    projection = nn.Linear(768, 4)
    report = count({"qformer": published, "projection": projection}, {"qformer": "qformer"}).as_dict()
    own = 768 * 4 + 4
    assert {key: report[key] for key in ("trainable", "total")} == {"trainable": own, "total": 185_660_160 + own}
    assert report["percent"] == pytest.approx(100 * own / (185_660_160 + own))
    assert report["parts"]["projection"] == {
        "trainable": own,
        "total": own,
        "without_gradient": 0,
        "percent": 100.0,
        "sublayers": {},
    }
    assert report["parts"]["qformer"]["sublayers"]["ffn.text"]["percent"] == 0.0


def test_shared_parameters_count_once(make_llm: Make) -> None:
    llm = make_llm("t5")
    tied = nn.Linear(16, 32, bias=False)
    tied.weight = llm.shared.weight
    alone = count({"llm": llm}, {"llm": "t5"}).total
    counted = count({"llm": llm, "head": tied, "query_tokens": nn.Parameter(torch.zeros(2, 3))}, {"llm": "t5"})
    assert alone == sum({id(p): p.numel() for p in llm.parameters()}.values())
    assert counted.parts["head"].total == 0
    assert counted.total == alone + 6


def test_an_empty_part_has_no_share() -> None:
    assert count({"nothing": nn.Identity()}, {}).as_dict()["parts"]["nothing"]["percent"] == 0.0
