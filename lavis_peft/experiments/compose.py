"""The run config of an experiment: base YAML, benchmark, setting, the user's data and overrides, in this order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lavis_peft.checks import listing
from lavis_peft.errors import ConfigError
from lavis_peft.experiments.settings import Benchmark, Setting, benchmarks, read_paper_yaml
from lavis_peft.runners.config_file import load_yaml, with_options

#: What stands for the folder of prepared data where none is given.
PLACEHOLDER = "PREPARED_DIR"
#: The research code's seed.
SEED = 42


def compose(
    setting: Setting,
    benchmark: Benchmark,
    *,
    data: Path | None = None,
    seed: int = SEED,
    output: str | None = None,
    options: Sequence[str] = (),
) -> DictConfig:
    """The complete run config of an experiment, as `lavis-peft train` takes it.

    Args:
        setting: What is tuned, and how.
        benchmark: On which data.
        data: The folder that `lavis-peft prepare` wrote; without it, `PLACEHOLDER` stands in the paths.
        seed: Of weights, order and augmentation.
        output: ``run.output_dir``; by default `output_dir_of`.
        options: Overrides, as for `lavis-peft train`.

    Raises:
        ConfigError: The folder isn't one of this benchmark, or an override is malformed.
    """
    run = {**setting.run[benchmark.name], "seed": seed, "output_dir": output or output_dir_of(setting, benchmark, seed)}
    parts = [
        read_paper_yaml(setting.llm),
        dict(benchmark.config),
        {"model": {"adapters": dict(setting.adapters)}, "run": run},
        _data_section(benchmark, data),
    ]
    merged = OmegaConf.merge(*(OmegaConf.create(part) for part in parts))
    # In the order in which run configs are read.
    ordered = OmegaConf.create({name: merged[name] for name in ("model", "datasets", "run")})
    return with_options(ordered, options, f"experiment {setting.key}")[0]


def tiny_options(benchmark: Benchmark) -> tuple[str, ...]:
    """The overrides that put an experiment on the tiny model that comes with the package."""
    image = "{name: peft_image, image_size: 64}"
    return ("model.model_type=tiny", f"datasets.{benchmark.builder}.vis_processor={{train: {image}, eval: {image}}}")


def output_dir_of(setting: Setting, benchmark: Benchmark, seed: int) -> str:
    """Where an experiment's runs go unless told otherwise."""
    return f"output/paper/{benchmark.name}/{setting.key}/seed_{seed}"


def as_yaml(config: DictConfig, setting: Setting, benchmark: Benchmark, options: Sequence[str] = ()) -> str:
    """A composed config as the text of a run config that says what it is.

    Args:
        config: What `compose` returned.
        setting: Its setting.
        benchmark: Its benchmark.
        options: The overrides that are in it.
    """
    needs = f"data written by `lavis-peft prepare {benchmark.name}`"
    if config.model.get("model_type") != "tiny":
        needs = f"a GPU; {needs}" + ("; Vicuna-7B v1.1 in model.llm_model" if setting.llm == "vicuna" else "")
    head = [
        f"Purpose: experiment {setting.key} of Kim et al. 2024: {setting.title}, on {benchmark.title}.",
        f"Needs:   {needs}.",
        "Command: lavis-peft train --cfg-path THIS_FILE",
        f"Learning rate and epochs: {origin(setting, benchmark)}",
        *(f"Changed: {option}" for option in options),
    ]
    return "".join(f"# {line}\n" for line in head) + OmegaConf.to_yaml(config, resolve=True)


def origin(setting: Setting, benchmark: Benchmark) -> str:
    """Whose choice an experiment's learning rate and epochs are, in a sentence."""
    if benchmark.name in setting.published:
        return "as published with the research code."
    if setting.published:
        lent = benchmarks()[str(benchmark.settings_of)].title
        epochs = f" but with {benchmark.max_epoch} epochs" if benchmark.max_epoch else ""
        return f"OUR CHOICE, those of {lent}{epochs}; none are published for {benchmark.title}."
    return "OUR CHOICE; none are published for this experiment."


def _data_section(benchmark: Benchmark, data: Path | None) -> dict[str, Any]:
    if data is None:
        files = {split: {"storage": f"{PLACEHOLDER}/{split}.json"} for split in ("train", "val", "test")}
        build_info = {"annotations": files, "images": {"storage": f"{PLACEHOLDER}/images"}}
        return {"datasets": {benchmark.builder: {"build_info": build_info}}}
    path = data.expanduser() / "dataset.yaml"
    if not path.is_file():
        raise ConfigError(
            f"--data {data}: has no dataset.yaml; give the folder that "
            f"`lavis-peft prepare {benchmark.name} --source DOWNLOAD --output DIR` wrote"
        )
    content = load_yaml(path)
    found = content.get("datasets") if set(content) == {"datasets"} else None
    if not isinstance(found, DictConfig) or set(found) != {benchmark.builder}:
        names = listing(found) if isinstance(found, DictConfig) else "no section `datasets` alone"
        raise ConfigError(f"--data {data}: dataset.yaml must describe {benchmark.builder}, and describes: {names}")
    section = OmegaConf.to_container(content)
    return section if isinstance(section, dict) else {}
