"""Whole runs on features, beside runs on pictures."""

import copy as copying
import hashlib
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lavis_peft

lavis_peft.register()

from lavis_peft.adapters.checkpoint import read_checkpoint  # noqa: E402  after the plugin made LAVIS importable
from lavis_peft.cli.running import build_runner, run  # noqa: E402
from lavis_peft.datasets.images import ImageFiles, UnreadableImage  # noqa: E402
from lavis_peft.errors import CheckpointError, ConfigError, DiskFull  # noqa: E402
from lavis_peft.features import room  # noqa: E402
from lavis_peft.features.space import stores  # noqa: E402
from lavis_peft.models.load import read_run  # noqa: E402
from lavis_peft.models.parking import is_parked  # noqa: E402

VARIANT = "LoRA, two iterations a step"
FLOAT32 = "run.feature_cache.dtype=float32"
PICTURES = 72


@pytest.fixture(scope="module")
def plain(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run config, and what it comes to on pictures."""
    folder = tmp_path_factory.mktemp("plain")
    config = driver.write_config(folder, VARIANT, 1)
    run(str(config), ["run.max_epoch=2", "run.keep_checkpoints=2"], training=True)
    return config, driver.outcome(folder / "output")


@pytest.fixture
def train(plain: Any, driver: Any, tmp_path: Path) -> Callable[..., Any]:
    """Train with a cache in ``tmp_path / "cache"``; gives the outcome."""

    def make(*options: str, name: str = "run") -> Any:
        given = ["run.max_epoch=2", f"run.feature_cache.dir={tmp_path / 'cache'}", *options]
        run(str(plain[0]), [*given, f"run.output_dir={tmp_path / name}"], training=True)
        return driver.outcome(tmp_path / name)

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each pass of a vision encoder had."""
    from lavis_peft.models.encoding import Encoding

    counts: list[int] = []
    real = Encoding.encode_vision
    monkeypatch.setattr(
        Encoding, "encode_vision", lambda self, pictures: counts.append(len(pictures)) or real(self, pictures)
    )
    return counts


def cached(folder: Path) -> int:
    return sum(len(store) for _, store in stores(folder / "cache"))


def frozen(folder: Path) -> dict[str, str]:
    (path,) = folder.glob("*/checkpoint_best.pth")
    return read_checkpoint(path)["frozen"]


def test_in_float32_nothing_differs_to_the_last_bit(
    plain: Any, train: Any, driver: Any, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver.differences(plain[1], train(FLOAT32)) == []
    assert sum(encoded) == PICTURES  # each once, in two epochs and three evaluations
    assert cached(tmp_path) == PICTURES
    encoded.clear()
    # The second run opens no picture and reads no weights of the encoder.
    monkeypatch.setattr(ImageFiles, "read", lambda *_: pytest.fail("a picture was opened"))
    monkeypatch.setattr(
        "lavis_peft.models.vision_weights.read_checkpoint", lambda *_: pytest.fail("the encoder was loaded")
    )
    assert driver.differences(plain[1], train(FLOAT32, name="again")) == []
    assert encoded == []
    assert frozen(tmp_path / "again") == frozen(plain[0].parent / "output")
    assert "vision" in frozen(tmp_path / "again")


def test_in_half_precision_little_differs(plain: Any, train: Any, tmp_path: Path) -> None:
    found = train()
    losses = [[line["train_loss"] for line in each["log"] if "train_loss" in line] for each in (plain[1], found)]
    assert len(losses[0]) == 2
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    header = next((tmp_path / "cache").glob("*/space.json"))
    assert json.loads(header.read_text())["dtype"] == "half"


def test_half_precision_models_have_the_same_losses(plain: Any, train: Any, driver: Any, tmp_path: Path) -> None:
    half = ["model.vit_precision=bf16", "model.llm_precision=bf16", "run.max_epoch=1"]
    run(str(plain[0]), [*half, f"run.output_dir={tmp_path / 'without'}"], training=True)
    without = driver.outcome(tmp_path / "without")
    assert driver.differences(without, train(*half, FLOAT32)) == []
    ((header, _),) = stores(tmp_path / "cache")
    assert (header["encoder"]["precision"], header["encoder"]["computed_in"]) == ("bf16", "bfloat16")


def test_a_run_goes_on_with_a_cache_that_it_began_without(plain: Any, driver: Any, tmp_path: Path) -> None:
    options = ["run.max_epoch=2", f"run.output_dir={tmp_path / 'output'}", "run.resume_ckpt_path=auto"]
    shutil.copytree(plain[0].parent / "output", tmp_path / "output")
    (folder,) = (tmp_path / "output").iterdir()
    (folder / "finished.json").unlink()
    (folder / "checkpoint_1.pth").unlink()  # as if it had been killed after its first epoch
    (folder / "checkpoint_best.pth").unlink()
    given = [f"run.feature_cache.dir={tmp_path / 'cache'}"]
    with pytest.raises(ConfigError, match=r"run.feature_cache.dtype was absent and is \"half\""):
        run(str(plain[0]), [*options, *given], training=True)
    run(str(plain[0]), [*options, *given, FLOAT32], training=True)
    assert driver.differences(plain[1], driver.outcome(tmp_path / "output")) == []


def test_workers_read_features_too(plain: Any, train: Any, driver: Any, encoded: list[int]) -> None:
    assert driver.differences(plain[1], train(FLOAT32, "run.num_workers=1")) == []
    assert sum(encoded) == PICTURES


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


def test_a_damaged_feature_is_replaced_by_the_picture_and_computed_anew(
    plain: Any, train: Any, driver: Any, tmp_path: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    train(FLOAT32)
    (data,) = (tmp_path / "cache").glob("*/*.data")
    size = data.stat().st_size // PICTURES
    for number in (3, 50):
        flip(data, number * size + 7)
    encoded.clear()
    assert driver.differences(plain[1], train(FLOAT32, name="damaged")) == []
    assert 0 < sum(encoded) < PICTURES * 2  # whole batches that such a picture is in
    assert "is damaged; it is computed anew" in caplog.text
    encoded.clear()
    assert driver.differences(plain[1], train(FLOAT32, name="mended")) == []
    assert encoded == [2]
    assert cached(tmp_path) == PICTURES


def test_other_weights_processors_and_pictures_have_other_features(
    plain: Any, train: Any, tmp_path: Path, encoded: list[int]
) -> None:
    from safetensors.torch import load_file, save_file

    train()
    config = yaml.safe_load(plain[0].read_text())
    encoded.clear()
    # The same pictures under other names.
    data = tmp_path / "data"
    shutil.copytree(plain[0].parent, data, ignore=shutil.ignore_patterns("output"))
    moved = tmp_path / "moved.yaml"
    moved.write_text(plain[0].read_text().replace(str(plain[0].parent), str(data)))
    common = ["run.max_epoch=1", f"run.feature_cache={tmp_path / 'cache'}", f"run.output_dir={tmp_path / 'o'}"]
    run(str(moved), common, training=True)
    assert encoded == []
    # One picture with another content.
    shutil.copy(data / "train0.png", data / "train1.png")
    with (data / "train0.png").open("ab") as file:
        file.write(b"\0")
    run(str(moved), common, training=True)
    assert sum(encoded) == 1 + 1  # alone it goes as one of two, and is kept once
    assert cached(tmp_path) == PICTURES + 1
    # Another processor, then other weights.
    eval_processor = {"name": "blip_image_eval", "image_size": 64}
    config["datasets"]["instruct_json"]["vis_processor"] = {"train": eval_processor, "eval": eval_processor}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config))
    encoded.clear()
    run(str(other), common, training=True)
    assert sum(encoded) == PICTURES
    weights = load_file(Path(lavis_peft.__file__).parent / "tiny" / "vit.safetensors")
    weights["cls_token"] = weights["cls_token"] + 1
    save_file(weights, tmp_path / "vit.safetensors")
    encoded.clear()
    run(str(other), [*common, f"model.vit_model.weights={tmp_path / 'vit.safetensors'}"], training=True)
    assert sum(encoded) == PICTURES
    assert len(stores(tmp_path / "cache")) == 3


def test_a_random_encoder_has_features_of_its_own(plain: Any, train: Any, encoded: list[int]) -> None:
    random_weights = ["run.max_epoch=1", "model.vit_model.weights=null"]
    first = train(*random_weights)
    assert sum(encoded) == PICTURES
    encoded.clear()
    again = train(*random_weights, name="again")  # the same seed, the same weights
    assert encoded == []
    assert first["log"] == again["log"]
    train(*random_weights, "run.seed=5", name="other")
    assert sum(encoded) == PICTURES


# ---- random transforms ---------------------------------------------------------------------------------------------


@pytest.fixture
def augmented(plain: Any, tmp_path: Path) -> Path:
    config = yaml.safe_load(plain[0].read_text())
    config["datasets"]["instruct_json"]["vis_processor"]["train"] = {"name": "blip2_image_train", "image_size": 64}
    path = tmp_path / "augmented.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_random_transform_is_refused_before_anything_is_loaded(
    augmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("weights were read"))
    expected = (
        r"run.feature_cache: datasets.instruct_json.vis_processor.train is random \(RandomResizedCrop, "
        r"RandomHorizontalFlip\).*blip_image_eval, peft_image.*run.feature_cache.augmentations"
    )
    with pytest.raises(ConfigError, match=expected):
        run(str(augmented), [f"run.feature_cache={tmp_path / 'cache'}"], training=True)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "output").exists()
    monkeypatch.undo()
    given = [f"run.feature_cache={tmp_path / 'cache'}", f"run.output_dir={tmp_path / 'o'}", "run.evaluate=true"]
    runner = build_runner(str(augmented), given, training=True)
    with pytest.raises(ConfigError, match=r"InstructDataset.vis_processor is random \(RandomResizedCrop"):
        runner._use_features(["train"])  # which an evaluation doesn't ask for
    runner._use_features(["val", "test"])


def test_augmentations_are_so_many_fixed_views(
    augmented: Path, driver: Any, tmp_path: Path, encoded: list[int]
) -> None:
    views = 3
    common = [f"run.feature_cache.augmentations={views}", "run.max_epoch=2"]

    def outcome(name: str, *options: str) -> Any:
        given = [*common, f"run.output_dir={tmp_path / name}", f"run.feature_cache.dir={tmp_path / 'cache'}", *options]
        run(str(augmented), given, training=True)
        return driver.outcome(tmp_path / name)

    first = outcome("first")
    assert sum(encoded) == 48 * views + 24  # evaluation isn't random
    encoded.clear()
    assert driver.differences(first, outcome("workers", "run.num_workers=1")) == []
    assert encoded == []
    shutil.rmtree(tmp_path / "cache")
    assert driver.differences(first, outcome("again")) == []
    # Which view a sample gets: another one each epoch, all of them in turn.
    runner = build_runner(
        str(augmented),
        [*common, f"run.output_dir={tmp_path / 'o'}", f"run.feature_cache.dir={tmp_path / 'cache'}"],
        True,
    )
    runner._use_features(["train"])
    (dataset,) = (found["train"] for found in runner.datasets.values())
    shown = []
    for epoch in range(views + 1):
        dataset.set_epoch(epoch, seed=epoch)
        shown.append([dataset[index]["image"] for index in range(2)])
    assert all(not torch.equal(shown[0][0], shown[epoch][0]) for epoch in range(1, views))
    assert torch.equal(shown[0][0], shown[views][0])
    assert torch.equal(shown[0][1], shown[views][1])


# ---- bad pictures, full disks, kills -------------------------------------------------------------------------------


@pytest.fixture
def copy(plain: Any, tmp_path: Path) -> Path:
    """The run config with pictures of its own."""
    data = tmp_path / "data"
    shutil.copytree(plain[0].parent, data, ignore=shutil.ignore_patterns("output"))
    path = tmp_path / "run.yaml"
    path.write_text(plain[0].read_text().replace(str(plain[0].parent), str(data)))
    return path


def test_bad_samples_are_left_out_as_without_a_cache(copy: Path, driver: Any, tmp_path: Path) -> None:
    (tmp_path / "data" / "train5.png").write_bytes(b"no picture")
    common = ["run.max_epoch=1", "run.on_bad_sample=skip"]
    run(str(copy), [*common, f"run.output_dir={tmp_path / 'without'}"], training=True)
    cache = [f"run.feature_cache.dir={tmp_path / 'cache'}", FLOAT32]
    with pytest.raises(UnreadableImage, match=r"train5.png: the image can't be read"):
        run(str(copy), [*cache, "run.max_epoch=1", f"run.output_dir={tmp_path / 'x'}"], training=True)
    run(str(copy), [*common, *cache, f"run.output_dir={tmp_path / 'with'}"], training=True)
    found = driver.outcome(tmp_path / "with")
    assert driver.differences(driver.outcome(tmp_path / "without"), found) == []
    assert found["log"][0]["train_bad_samples"] == 1


def test_too_little_room_is_said_before_anything_is_computed(
    copy: Path, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda folder: 1000)
    given = [f"run.feature_cache={tmp_path / 'cache'}", f"run.output_dir={tmp_path / 'output'}"]
    with pytest.raises(DiskFull, match=r"cache: 877.5 KiB of features are to be computed, and the disk has 1000 bytes"):
        run(str(copy), given, training=True)
    assert encoded == []


def test_a_cache_that_cant_be_written_must_be_complete(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return real(path, mode) and not (mode & os.W_OK and Path(path) == tmp_path / "cache")

    (tmp_path / "cache").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", access)
        with pytest.raises(ConfigError, match="no permission to write to it, and it isn't complete"):
            train("run.max_epoch=1", name="refused")
    train("run.max_epoch=1", name="fills")
    monkeypatch.setattr(os, "access", access)
    train("run.max_epoch=1", name="reads")


FILL = """
import sys, time
from lavis_peft.features import store
real = store.Writer._append
def slow(base, ending, content):
    # Half of it, then a pause to be killed in.
    real(base, ending, content[: len(content) // 2])
    time.sleep(float(sys.argv[3]))
    real(base, ending, content[len(content) // 2 :])
store.Writer._append = staticmethod(slow)
from lavis_peft.cli import main
main(["features", "fill", "--cfg-path", sys.argv[1], "--options", "run.feature_cache=" + sys.argv[2]])
"""


def test_a_fill_that_is_killed_anywhere_goes_on(
    copy: Path, plain: Any, nursery: Any, driver: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    counts = []
    for number in range(4):
        process = nursery.start(FILL, tmp_path / f"fill{number}.txt", copy, cache, 0.1)
        wanted = len(list(cache.glob("*/*.data"))) + 1
        deadline = time.monotonic() + 60
        while len(list(cache.glob("*/*.data"))) < wanted or not any(
            path.stat().st_size for path in cache.glob("*/*.data")
        ):
            assert process.poll() is None, process.said()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.17 * number)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        counts.append(cached(tmp_path) if list(cache.glob("*/space.json")) else 0)
    assert counts == sorted(counts)
    assert 0 < counts[-1] < PICTURES
    process = nursery.start(FILL, tmp_path / "last.txt", copy, cache, 0)
    assert process.wait() == 0, process.said()[-2000:]
    assert cached(tmp_path) == PICTURES
    assert f"{PICTURES - counts[-1]} of {PICTURES} features are to be computed" in process.said()
    assert all(whole for _, store in stores(cache) for whole in store.verify())


def test_two_runs_fill_one_cache_at_once(copy: Path, nursery: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [nursery.start(FILL, tmp_path / f"fill{number}.txt", copy, cache, 0.02) for number in range(2)]
    for process in both:
        assert process.wait() == 0, process.said()[-2000:]
    assert cached(tmp_path) == PICTURES
    assert len(list(cache.glob("*/*.data"))) == 2
    assert all(whole for _, store in stores(cache) for whole in store.verify())


def test_processes_share_the_fill(plain: Any, driver: Any, nursery: Any, tmp_path: Path) -> None:
    options = ["run.max_epoch=1", "run.batch_size_train=4", "run.accum_grad_iters=1"]
    outcomes = []
    for name, cache in (("without", []), ("with", [f"run.feature_cache.dir={tmp_path / 'cache'}", FLOAT32])):
        arguments = ("--cfg-path", plain[0], "--options", *options, *cache, f"run.output_dir={tmp_path / name}")
        processes = nursery.ranks(driver.TRAIN, tmp_path / f"ranks_{name}", [arguments] * 2)
        for process in processes:
            assert process.wait() == 0, process.said()[-3000:]
        outcomes.append(driver.outcome(tmp_path / name))
    assert driver.differences(*outcomes) == []
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*.data")]
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]
    assert cached(tmp_path) == PICTURES


def test_a_picture_that_changes_meanwhile_never_gives_its_features_to_another(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    from lavis_peft.features import prepare as module

    data, given = tmp_path / "data", [f"run.feature_cache={tmp_path / 'cache'}", "run.max_epoch=1"]
    with monkeypatch.context() as patch:  # after the digests, before the features
        patch.setattr(module, "_announce", lambda *_: shutil.copy(data / "train4.png", data / "train3.png"))
        with pytest.raises(UnreadableImage, match=r"train3.png: the image was changed while features were computed"):
            run(str(copy), [*given, f"run.output_dir={tmp_path / 'stopped'}"], training=True)
    run(str(copy), [*given, f"run.output_dir={tmp_path / 'again'}"], training=True)
    ((_, store),) = stores(tmp_path / "cache")
    assert hashlib.sha256((data / "train3.png").read_bytes()).digest() in store
    assert len(store) == PICTURES - 1


def test_what_training_lacks_is_said_before_anything_is_computed(
    plain: Any, tmp_path: Path, encoded: list[int]
) -> None:
    given = [f"run.feature_cache={tmp_path / 'cache'}", f"run.output_dir={tmp_path / 'output'}"]
    with pytest.raises(ConfigError, match="a step takes 100 iterations and an epoch has 6"):
        run(str(plain[0]), [*given, "run.accum_grad_iters=100"], training=True)
    assert encoded == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cache", [False, True])
def test_pictures_of_another_size_than_the_model_s_are_named(plain: Any, tmp_path: Path, cache: bool) -> None:
    config = yaml.safe_load(plain[0].read_text())
    config["datasets"]["instruct_json"]["vis_processor"]["train"] = {"name": "peft_image", "image_size": 32}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    given = [f"run.output_dir={tmp_path / 'o'}", *([f"run.feature_cache={tmp_path / 'cache'}"] if cache else [])]
    with pytest.raises(ConfigError, match="model.image_size: 64, but the vis_processor gives pictures of 32 × 32"):
        run(str(path), given, training=True)


def test_only_the_plugin_s_runners_read_features(plain: Any, tmp_path: Path) -> None:
    given = [f"run.feature_cache={tmp_path / 'cache'}", "run.runner=runner_base", "run.max_epoch=1"]
    with pytest.raises(ConfigError, match="run.feature_cache: runner_base knows nothing of it"):
        run(str(plain[0]), given, training=True)


def test_who_only_asks_the_model_needs_no_cache(plain: Any) -> None:
    """As `predict` does, perhaps on a machine that hasn't the cache's disk."""
    given = [f"run.feature_cache={plain[0]}/below"]
    with pytest.raises(ConfigError, match="in it is a file"):
        build_runner(str(plain[0]), given, training=False)
    _, _, section = read_run(str(plain[0]), options=given)
    assert section["arch"] == "blip2_t5_instruct_peft"


# ---- the encoder ---------------------------------------------------------------------------------------------------


def test_an_encoder_that_was_put_away_comes_back_for_a_picture(plain: Any, tmp_path: Path) -> None:
    given = [f"run.output_dir={tmp_path / 'o'}", f"run.feature_cache.dir={tmp_path / 'cache'}", FLOAT32]
    runner = build_runner(str(plain[0]), given, training=True)
    model = runner._model
    assert is_parked(model.visual_encoder)
    assert all(parameter.is_meta for parameter in model.visual_encoder.parameters())
    runner._use_features(["test"])
    assert is_parked(runner.plain_model.visual_encoder)
    (dataset,) = (found["test"] for found in runner.datasets.values())
    features = dataset.collater([dataset[0], dataset[1]])
    assert features["image"].dim() == 3
    assert "load_picture" not in features
    dataset.use_features(None)
    pictures = dataset.collater([dataset[0], dataset[1]])
    assert pictures["image"].dim() == 4
    model.eval()
    for answer in (
        lambda batch: model.score_candidates(batch["image"], batch["text_input"], batch["candidates"]),
        lambda batch: [model(batch)["loss"]],
        lambda batch: model.generate({"image": batch["image"], "prompt": batch["text_input"]}),
        lambda batch: model.predict_answers(batch),
        lambda batch: [model.predict_class({**batch, "prompt": ["{}"] * 2}, ["red", "blue"])],
    ):
        found = answer(features)
        again = answer(pictures)
        assert is_parked(model.visual_encoder) is False
        for one, two in zip(found, again, strict=True):
            assert one == two if isinstance(one, str) else torch.equal(one, two)


def test_a_parked_encoder_is_copied_and_pickled_with_its_model(plain: Any, tmp_path: Path) -> None:
    given = [f"run.output_dir={tmp_path / 'o'}", f"run.feature_cache={tmp_path / 'cache'}"]
    model = build_runner(str(plain[0]), given, training=True)._model
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copying.deepcopy(model), torch.load(file, weights_only=False)):  # a file of our own
        assert is_parked(other.visual_encoder)
        other.double()
        assert other.encode_vision(torch.zeros(1, 3, 64, 64)).shape[0] == 1
        assert not is_parked(other.visual_encoder)
        state = {key: value for key, value in other.state_dict().items() if not key.startswith("visual_encoder.")}
        other.load_state_dict({**state, "visual_encoder.cls_token": other.visual_encoder.cls_token + 1})
        assert other.visual_encoder.source is None
        assert is_parked(model.visual_encoder)
        assert model.visual_encoder.source is not None


def test_evaluate_reads_features(plain: Any, tmp_path: Path, encoded: list[int]) -> None:
    (checkpoint,) = (plain[0].parent / "output").glob("*/checkpoint_best.pth")
    common = ["model.load_finetuned=true", f"model.finetuned={checkpoint}", f"run.output_dir={tmp_path / 'o'}"]
    without = run(str(plain[0]), common, training=False)
    encoded.clear()
    cache = [f"run.feature_cache.dir={tmp_path / 'cache'}", FLOAT32]
    for passes in (12, 0):
        found = run(str(plain[0]), [*common, *cache], training=False)
        assert found["test"] == without["test"]
        assert sum(encoded) == passes
        encoded.clear()


def test_a_checkpoint_with_an_encoder_of_its_own_counts_as_another(plain: Any, tmp_path: Path) -> None:
    given = [f"run.output_dir={tmp_path / 'o'}", f"run.feature_cache={tmp_path / 'cache'}"]
    model = build_runner(str(plain[0]), given, training=True)._model
    (checkpoint,) = (plain[0].parent / "output").glob("*/checkpoint_best.pth")
    state = read_checkpoint(checkpoint)["model"]
    model.load_state_dict(state)
    assert is_parked(model.visual_encoder)
    other = torch.full_like(torch.empty(model.visual_encoder.cls_token.shape, device="cpu"), 0.5)
    state["visual_encoder.cls_token"] = other
    model.load_state_dict(state)
    assert not is_parked(model.visual_encoder)
    assert torch.equal(model.visual_encoder.cls_token, other)
    assert model.visual_encoder.source is None
    runner = build_runner(str(plain[0]), given, training=True)
    runner._use_features(["test"])
    with pytest.raises(CheckpointError, match="has a vision encoder of its own"):
        runner.plain_model.load_state_dict(state)
