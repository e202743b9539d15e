import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import lavis_peft
from lavis_peft.errors import ConfigError


@pytest.fixture(scope="module")
def processor_class():
    lavis_peft.register()
    from lavis_peft.processors import PROCESSORS

    return PROCESSORS["peft_image"]


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [64, 48, 96])
def test_it_computes_what_blip_image_eval_computes(processor_class, picture, size):
    from lavis.common.registry import registry

    theirs = registry.get_processor_class("blip_image_eval").from_config(OmegaConf.create({"image_size": size}))
    ours = processor_class.from_config(OmegaConf.create({"name": "peft_image", "image_size": size}))
    found = ours(picture)
    assert found.shape == (3, size, size) and found.is_contiguous()
    torch.testing.assert_close(found, theirs(picture), rtol=0, atol=1e-6)


def test_other_modes_become_rgb(processor_class):
    grey = processor_class(4)(Image.new("L", (4, 4), 128))
    colour = processor_class(4)(Image.new("RGB", (4, 4), (128, 128, 128)))
    assert torch.equal(grey, colour)


def test_spawned_data_workers_can_have_it(processor_class, picture):
    process = processor_class(32)
    assert torch.equal(pickle.loads(pickle.dumps(process))(picture), process(picture))


def test_every_image_processor_that_our_yamls_name_exists(processor_class):
    from lavis.common.registry import registry

    for name in ("peft_image", "blip2_image_train", "blip_image_eval"):
        assert registry.get_processor_class(name) is not None


@pytest.mark.parametrize("cfg", [{"image_size": -1}, {"image_size": 64.0}, {"size": 64}])
def test_wrong_options(processor_class, cfg):
    with pytest.raises(ConfigError, match="peft_image"):
        processor_class.from_config(OmegaConf.create({"name": "peft_image", **cfg}))
