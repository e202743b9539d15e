"""The vision encoder: its settings, its sizes, and strict loading of its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lavis_peft.errors import CheckpointError, ConfigError
from lavis_peft.models.vision import EVA_CLIP_G, VisionSpec, build_vision_encoder

SMALL = VisionSpec(embed_dim=16, depth=1, num_heads=2, patch_size=8, mlp_ratio=2, stem="conv")


def weights_of(spec: VisionSpec, path: Path, **more: torch.Tensor) -> str:
    """A file of a fresh encoder's weights."""
    tensors = dict(build_vision_encoder(spec, 32, precision="fp32").state_dict())
    save_file({key: value.contiguous() for key, value in (tensors | more).items()}, path)
    return str(path)


def test_all_problems_of_a_mapping_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        VisionSpec.parse({"embed_dim": 0, "num_heads": True, "stem": "cnv", "depht": 2})
    for key in ("embed_dim", "num_heads", "stem", "depht", "depth", "patch_size"):
        assert f"vit_model.{key}:" in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"patch_size": 12}, "power of two"),
        ({"embed_dim": 18, "num_heads": 2, "patch_size": 16}, "halves"),
        ({"weights": "/nowhere/vit.pth"}, "no file"),
    ],
)
def test_sizes_that_do_not_fit_together(sizes: dict, problem: str) -> None:
    values = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "stem": "conv"} | sizes
    with pytest.raises(ConfigError, match=problem):
        VisionSpec.parse(values)


def test_a_name_that_is_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="eva_clip_g"):
        VisionSpec.parse("eva_clip_q")


def test_eva_has_its_published_size_without_a_download() -> None:
    assert VisionSpec.parse("eva_clip_g") == replace(EVA_CLIP_G, weights="eva_clip_g")
    with torch.device("meta"):
        encoder = build_vision_encoder(EVA_CLIP_G, 224, drop_path_rate=0.4)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 985_894_528
    assert encoder.patch_embed.proj.weight.dtype == torch.float16
    assert encoder.pos_embed.shape == (1, 257, 1408)


@pytest.mark.parametrize("stem", ["linear", "conv"])
def test_features_have_a_row_for_each_patch_and_one_more(stem: str) -> None:
    encoder = build_vision_encoder(replace(SMALL, stem=stem), 32, precision="fp32")
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 17, 16)


def test_weights_come_back_and_other_picture_sizes_interpolate(tmp_path: Path) -> None:
    spec = replace(SMALL, weights=weights_of(SMALL, tmp_path / "vit.safetensors"))
    first, second = (build_vision_encoder(spec, 32, precision="fp32").eval() for _ in range(2))
    picture = torch.randn(1, 3, 32, 32)
    assert torch.equal(first(picture), second(picture))
    assert build_vision_encoder(spec, 64, precision="fp32").pos_embed.shape == (1, 65, 16)


def test_evas_last_block_and_head_may_be_in_the_file(tmp_path: Path) -> None:
    extra = {"blocks.39.norm1.weight": torch.ones(16), "norm.bias": torch.ones(16), "head.weight": torch.ones(2, 16)}
    spec = replace(SMALL, weights=weights_of(SMALL, tmp_path / "vit.safetensors", **extra))
    assert build_vision_encoder(spec, 32, precision="fp32") is not None


def test_missing_and_foreign_keys_are_named(tmp_path: Path) -> None:
    file = weights_of(SMALL, tmp_path / "vit.safetensors", surprise=torch.ones(1))
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1.*foreign: surprise"):
        build_vision_encoder(replace(SMALL, depth=2, weights=file), 32)


def test_tensors_of_another_size_are_refused(tmp_path: Path) -> None:
    file = weights_of(SMALL, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="cls_token"):
        build_vision_encoder(replace(SMALL, embed_dim=32, weights=file), 32)


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="can't be read"):
        build_vision_encoder(replace(SMALL, weights=str(path)), 32)


def test_picture_size_and_precision_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        build_vision_encoder(SMALL, 33, precision="fp8")
    assert "image_size" in str(caught.value) and "vit_precision" in str(caught.value)


def test_weights_from_a_file_are_the_first_that_the_encoder_has_and_its_own(tmp_path: Path) -> None:
    spec = replace(SMALL, weights=weights_of(SMALL, tmp_path / "vit.safetensors"))
    before = torch.get_rng_state()
    encoder = build_vision_encoder(spec, 32, precision="fp32")
    assert torch.equal(torch.get_rng_state(), before)  # no random numbers were drawn for what is then overwritten
    tensors = encoder.state_dict().values()
    assert all(
        tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors
    )  # not a view into a mapped file
