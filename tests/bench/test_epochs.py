"""Three epochs with and without a feature cache are the same work."""

from functools import partial
from pathlib import Path

import pytest

import lavis_peft

lavis_peft.register()

from lavis_peft.bench import epochs, sizes  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.bench.contender import Ours  # noqa: E402
from lavis_peft.bench.plain import Plain  # noqa: E402


def test_epochs_from_features_have_the_losses_of_epochs_from_pictures(tmp_path: Path) -> None:
    section = sizes.model_section("tiny", "t5", "fp32", tmp_path)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    section["qformer"], section["t5_model"] = (
        {**section["qformer"], **still},
        {**section["t5_model"], "dropout_rate": 0.0},
    )
    pictures = epochs.Pictures.drawn(partial(sizes.work, "tiny", device="cpu"), 2, "cpu", tmp_path)
    cached = epochs.train(Ours(section, "cpu"), pictures, "float32")
    assert len(cached) == epochs.EPOCHS * epochs.BATCHES
    assert cached == epochs.train(Ours(section, "cpu"), pictures)
    assert cached == pytest.approx(epochs.train(Plain(section, "cpu"), pictures), rel=1e-3)


def test_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "EPOCHS", 1)
    section = sizes.model_section("tiny", "t5", "fp32", tmp_path)
    pictures = epochs.Pictures.drawn(partial(sizes.work, "tiny", device="cpu"), 2, "cpu", tmp_path)
    contenders = {"lavis-peft": Ours(section, "cpu"), "plain": Plain(section, "cpu")}
    rows = epochs.rows(contenders, "lavis-peft", pictures, 1)
    assert [row.who for row in rows] == [epochs.CACHED, "lavis-peft", "plain"]
    assert [row.ratio is None for row in rows] == [True, False, False]
