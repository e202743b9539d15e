"""Every run config in projects/ names what is registered, and describes a model that can be built."""

import pytest
import transformers
from omegaconf import OmegaConf

import lavis_peft
from lavis_peft.paths import projects_dir

lavis_peft.register()

from lavis.common.config import Config  # noqa: E402  after the plugin made LAVIS importable
from lavis.common.registry import registry  # noqa: E402

from lavis_peft.runners.config import check_config  # noqa: E402
from lavis_peft.runners.config_file import SECTIONS, read_run_file  # noqa: E402

RUNS = [path for path in sorted(projects_dir().rglob("*.yaml")) if set(SECTIONS) <= set(OmegaConf.load(path))]


def test_there_are_run_configs() -> None:
    assert len(RUNS) >= 5


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_run_config_says_what_it_is_for(path) -> None:
    head = path.read_text().splitlines()[:8]
    for word in ("# Purpose:", "# Needs:", "# Command:"):
        assert any(line.startswith(word) for line in head), word
    assert any(str(path.relative_to(projects_dir().parent)) in line for line in head)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_run_config_is_valid(path) -> None:
    config, _ = read_run_file(path)
    check_config(config, where=str(path))
    cls = registry.get_model_class(config.model.arch)
    if cls.family == "llama" and not hasattr(transformers, "LlamaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no LLaMA")
    model = cls.on_meta(Config.build_model_config(config).model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_" in name for name in trained)
    for name, section in Config.build_dataset_config(config).datasets.items():
        for split in ("train", "eval"):
            assert section.vis_processor[split].image_size == model.spec.image_size, name


@pytest.mark.parametrize("table", ["model", "task", "builder", "processor", "runner", "lr_scheduler"])
def test_every_registered_name_is_a_class_of_its_kind(table: str) -> None:
    from lavis_peft import datasets, models, processors, runners, tasks

    ours = {
        "model": models.MODELS,
        "task": tasks.TASKS,
        "builder": datasets.BUILDERS,
        "processor": processors.PROCESSORS,
        "runner": runners.RUNNERS,
        "lr_scheduler": {name: cls for name, cls in runners.SCHEDULES.items() if name != "constant_lr"},
    }[table]
    known = registry.mapping[f"{table}_name_mapping"]
    assert ours
    assert {name: known[name] for name in ours} == ours
