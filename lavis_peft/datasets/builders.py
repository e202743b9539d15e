"""The dataset builders that LAVIS's registry gets. This module imports LAVIS."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_peft.datasets import easy_vqa
from lavis_peft.datasets.dataset import InstructDataset
from lavis_peft.datasets.files import annotation_files, locate, read_annotations
from lavis_peft.datasets.images import ImageFiles, check_images
from lavis_peft.datasets.processors import build_processors
from lavis_peft.datasets.records import Record, check_unique, raise_if, read_record
from lavis_peft.datasets.selection import carve, shuffle_images, split_answers, subset
from lavis_peft.datasets.spec import DatasetSpec, EasyVqaSpec, InstructJsonSpec, parse_easy_vqa, parse_instruct_json
from lavis_peft.errors import ConfigError, DataError
from lavis_peft.paths import plugin_configs_dir
from lavis_peft.research.records import READERS


def _default_config(name: str) -> dict[str, str]:
    # LAVIS joins the path to its own root; an absolute one survives the join.
    return {"default": str(plugin_configs_dir() / "datasets" / name / "defaults.yaml")}


class InstructBuilder(BaseDatasetBuilder):
    """What the plugin's builders share: the checks, and datasets from records. Nothing is ever downloaded.

    Args:
        cfg: The dataset's section of a run config, a YAML's path, or None for the default YAML.

    Raises:
        ConfigError: With every problem of the section.
    """

    name: str
    train_dataset_cls = eval_dataset_cls = InstructDataset

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg)
        self.where = f"datasets.{self.name}"
        problems: list[str] = []
        section: dict[str, Any] = {}
        try:
            section = OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)
            self.spec = self.parse(section, self.where)
        except OmegaConfBaseException as error:
            problems.append(f"{self.where}: {error}")
        except ConfigError as error:
            problems += error.problems
        for key, processors in (("vis_processor", self.vis_processors), ("text_processor", self.text_processors)):
            processors.update(build_processors(section.get(key), f"{self.where}.{key}", problems))
        if problems:
            raise ConfigError(problems)

    def parse(self, section: Mapping[str, Any], where: str) -> DatasetSpec:
        """The section as a checked value."""
        raise NotImplementedError

    def read_records(self) -> dict[str, list[Record]]:
        """The records by split."""
        raise NotImplementedError

    def _download_data(self) -> None:
        """Nothing to download; LAVIS calls this on the first process."""

    def build(self) -> dict[str, InstructDataset]:
        """The datasets by split, every record and the presence of every picture checked.

        Raises:
            DataError: With the problems of all splits.
            ConfigError: An option that the data can't meet.
        """
        return _each(self._dataset, self.read_records())

    def _dataset(self, split: str, records: list[Record]) -> InstructDataset:
        spec = self.spec
        records = subset(records, spec.max_samples.get(split), spec.seed)
        check_images(records)
        if spec.shuffle_images:
            records = shuffle_images(records, spec.seed, f"{self.where}.shuffle_images")
        train = split == "train"
        if train and spec.train_answers == "each":
            records = split_answers(records)
        mode = "train" if train else "eval"
        return InstructDataset(
            records,
            ImageFiles(spec.cache_images),
            spec.prompt,
            spec.target,
            self.vis_processors[mode],
            self.text_processors[mode],
            train=train,
            option_separator=spec.option_separator,
            every_answer=spec.train_answers == "together",
        )


def _each(make: Callable[[str, Any], Any], by_split: Mapping[str, Any]) -> dict[str, Any]:
    """Apply to each split; what is wrong with several is reported together."""
    made, problems = {}, []
    for split, value in by_split.items():
        try:
            made[split] = make(split, value)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))  # one file may serve several splits
    return made


class InstructJsonBuilder(InstructBuilder):
    """`instruct_json`: one's own questions, from JSON or JSONL files."""

    name = "instruct_json"
    DATASET_CONFIG_DICT = _default_config("instruct_json")
    spec: InstructJsonSpec
    #: What to do about an annotation file that isn't there.
    remedy = ""

    def parse(self, section: Mapping[str, Any], where: str) -> InstructJsonSpec:
        """The section as a checked value."""
        return parse_instruct_json(section, where)

    def read_records(self) -> dict[str, list[Record]]:
        """The records by split.

        Raises:
            DataError: With the problems of all splits.
        """
        return _each(self._split, self.spec.annotations)

    def _split(self, split: str, annotations: Any) -> list[Record]:
        cache_root = registry.get_path("cache_root")
        where = f"{self.where}.build_info.annotations.{split}"
        files = annotation_files(annotations, where, cache_root, remedy=self.remedy)
        used = self.spec.prompt.fields | self.spec.target.fields
        records: list[Record] = []
        problems: list[str] = []
        for path in files:
            folder = self._image_dir(path, cache_root)
            for place, raw in read_annotations(path):
                record = read_record(
                    self.adopted(raw),
                    folder,
                    f"{path}: {place}",
                    str(len(records)),
                    fixed_choices=self.spec.choices,
                    used=used,
                    problems=problems,
                )
                records += [record] if record is not None else []
        raise_if([*problems, *check_unique(records)])
        return records

    def adopted(self, raw: Any) -> Any:
        """The record in this plugin's form, where it is in another that the builder knows."""
        return raw

    def _image_dir(self, annotation_file: Path, cache_root: str | None) -> str:
        if self.spec.images is None:
            return str(annotation_file.parent)
        # A folder that isn't there is left as it is: the check of the pictures then says so, with its full path.
        return str(locate(self.spec.images, cache_root) or os.path.abspath(os.path.expanduser(self.spec.images)))


class BenchmarkBuilder(InstructJsonBuilder):
    """What the paper's benchmarks share: `prepare` writes their files, and those of the research code are read too."""

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """The command that writes the files."""
        return f"`lavis-peft prepare {self.name.removesuffix('_peft')}` writes it, and the paths in a dataset.yaml"

    def adopted(self, raw: Any) -> Any:
        """The record in this plugin's form, also where it is in the research code's."""
        return READERS[self.name](raw) if isinstance(raw, Mapping) else raw


class ScienceQaBuilder(BenchmarkBuilder):
    """`scienceqa_peft`: ScienceQA's questions with a picture, prompted as in Kim et al. 2024."""

    name = "scienceqa_peft"
    DATASET_CONFIG_DICT = _default_config(name)


class IconQaBuilder(BenchmarkBuilder):
    """`iconqa_peft`: IconQA's multi-text-choice sub-task, prompted as in Kim et al. 2024."""

    name = "iconqa_peft"
    DATASET_CONFIG_DICT = _default_config(name)


class VizWizBuilder(BenchmarkBuilder):
    """`vizwiz_peft`: VizWiz-VQA, prompted as in the research code of Kim et al. 2024."""

    name = "vizwiz_peft"
    DATASET_CONFIG_DICT = _default_config(name)


class Flickr30kBuilder(BenchmarkBuilder):
    """`flickr30k_peft`: Flickr30k's captions in Karpathy's splits, prompted as in that research code."""

    name = "flickr30k_peft"
    DATASET_CONFIG_DICT = _default_config(name)


class EasyVqaBuilder(InstructBuilder):
    """`easy_vqa`: the public easy-VQA set, answered as multiple choice among the answers of each question's kind."""

    name = "easy_vqa"
    DATASET_CONFIG_DICT = _default_config("easy_vqa")
    spec: EasyVqaSpec

    def parse(self, section: Mapping[str, Any], where: str) -> EasyVqaSpec:
        """The section as a checked value."""
        return parse_easy_vqa(section, where)

    def read_records(self) -> dict[str, list[Record]]:
        """The records of `train` and `test`, and of `val` if `val_images` asks for it.

        Raises:
            MissingExtra: The package easy-vqa isn't installed.
            DataError: The set's files aren't what they should be.
        """
        folder = Path(self.spec.data_dir).expanduser().absolute() if self.spec.data_dir else easy_vqa.data_dir()
        easy_vqa.check_answers(folder)
        train, test = easy_vqa.read_split(folder, "train"), easy_vqa.read_split(folder, "test")
        if not self.spec.val_images:
            return {"train": train, "test": test}
        train, val = carve(train, self.spec.val_images, self.spec.seed, f"{self.where}.val_images")
        return {"train": train, "val": val, "test": test}
