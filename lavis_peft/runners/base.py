"""What the plugin's runners share on top of LAVIS's RunnerBase (1.0.2 and main): where and on what a run happens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis_peft.cores import data_workers
from lavis_peft.errors import ConfigError
from lavis_peft.features.encoder import Encoder
from lavis_peft.features.filling import Filling
from lavis_peft.features.prepare import prepare
from lavis_peft.runners import distributed, optim
from lavis_peft.runners.allocation import Allocation, StepScaler
from lavis_peft.runners.config import run_spec
from lavis_peft.runners.folders import CheckpointFolder, make_run_folder
from lavis_peft.runners.loaders import eval_loader, joined, train_loader
from lavis_peft.runners.logs import RunLog
from lavis_peft.runners.precision import mixed_dtype, take_precision
from lavis_peft.runners.spec import AUTO, RunSpec
from lavis_peft.runners.whole import newest_run
from lavis_peft.tasks.splits import check_splits


class BaseRunnerPeft(RunnerBase):
    """A LAVIS runner that works on a CPU, one GPU or several processes, and saves what trains and nothing else.

    Args:
        cfg: LAVIS's run config.
        task: A LAVIS task.
        model: A LAVIS model; its parameters that require a gradient are trained and saved.
        datasets: Splits by dataset name.
        job_id: The run folder's name; one of LAVIS's own making is replaced by the time to the second.

    Raises:
        ConfigError: The run section is wrong, or names splits that the datasets lack.
    """

    # LAVIS's constructor sets these; what they are isn't typed there.
    job_id: str
    datasets: dict[str, Any]
    _model: nn.Module
    _wrapped_model: nn.Module | None
    _optimizer: torch.optim.Optimizer | None
    _scaler: Any
    _lr_sched: Any
    _dataloaders: dict[str, Any] | None

    def __init__(self, cfg: Any, task: Any, model: nn.Module, datasets: dict[str, Any], job_id: str) -> None:
        self.spec: RunSpec = run_spec(cfg.run_cfg)
        check_splits({"valid_splits": self.spec.valid_splits, "test_splits": self.spec.test_splits}, datasets)
        cfg.run_cfg.device = distributed.take_device(self.spec.device)
        self._train_loader: Any = None
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self.allocation: Allocation | None = None
        take_precision(model, self.spec.amp, self.spec.amp_dtype, str(self.device))

    def setup_output_dir(self) -> None:
        """Make the run's folder under the user's directory, or go on in one, and tell LAVIS where it is."""
        #: Whether this run goes on in the folder of an earlier one.
        self.continues = False
        if self.spec.resume_ckpt_path == AUTO and not self.spec.evaluate:
            found = distributed.from_main(newest_run(self.spec.output_dir) if distributed.is_main() else None)
            if found is not None:
                self.continues = True
                self._use_folder(found)
                return
        self._use_folder(make_run_folder(self.spec.output_dir, self.job_id))

    def _use_folder(self, folder: Path) -> None:
        self.output_dir: Path = folder
        self.result_dir = self.output_dir / "result"
        self.job_id = self.output_dir.name
        self.files = CheckpointFolder(folder, self.spec.save_freq, self.spec.keep_checkpoints)
        self.log = RunLog(folder, distributed.is_main(), self.spec.tensorboard)
        # Set, not registered: LAVIS refuses a second runner in one process.
        registry.mapping["paths"]["output_dir"] = str(self.output_dir)
        registry.mapping["paths"]["result_dir"] = str(self.result_dir)

    # ---- what LAVIS's methods and loop ask for -------------------------------------------------------------------

    @property
    def use_distributed(self) -> bool:
        """Whether several processes share the run; LAVIS believes the YAML, which says so even for one process."""
        return distributed.world_size() > 1

    @property
    def model(self) -> nn.Module:
        """The model on its device, wrapped where several processes train it."""
        if self._wrapped_model is None:
            self._model = self._model.to(self.device)
            self._wrapped_model = distributed.wrap(self._model)
        return self._wrapped_model

    def unwrap_dist_model(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model.module if isinstance(model, DistributedDataParallel) else model

    @property
    def plain_model(self) -> nn.Module:
        """The model itself, on its device."""
        return self.unwrap_dist_model(self.model)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over what trains."""
        if self._optimizer is None:
            self._optimizer = optim.build_optimizer(self.plain_model, self.spec)
        return self._optimizer

    @property
    def mixed_dtype(self) -> torch.dtype | None:
        """What mixed precision computes in; None where the run has none."""
        return mixed_dtype(self.spec.amp, self.spec.amp_dtype, str(self.device))

    @property
    def scaler(self) -> Any:
        """The loss scaler of float16; None without it, since nothing else needs one."""
        if self._scaler is None and self.mixed_dtype is torch.float16:
            self._scaler = StepScaler("cuda")
        return self._scaler

    @property
    def lr_scheduler(self) -> Any:
        """The learning-rate schedule."""
        if self._lr_sched is None:
            cls = registry.get_lr_scheduler_class(self.spec.lr_sched)
            if cls is None:
                raise ConfigError(f"run.lr_sched: unknown name '{self.spec.lr_sched}'")
            self._lr_sched = optim.build_schedule(
                cls, self.optimizer, self.spec, self.max_epoch, len(self.train_loader)
            )
        return self._lr_sched

    @property
    def max_epoch(self) -> int:
        """Epochs of the whole run."""
        return self.spec.max_epoch or 0

    @property
    def length(self) -> str:
        """The key that says how long the run is, with its value."""
        return f"run.max_epoch={self.spec.max_epoch}"

    @property
    def dataloaders(self) -> dict[str, Any]:
        """A loader for each split that the run uses."""
        if self._dataloaders is None:
            self.datasets = joined(self.datasets)
            scored = {*self.spec.valid_splits, *self.spec.test_splits}
            self._dataloaders = {split: self._eval_loader(self.datasets[split]) for split in sorted(scored)}
        return self._dataloaders

    @property
    def train_loader(self) -> Any:
        """The loader that training draws from; made when it is first asked for, since evaluation needs none."""
        if self._train_loader is None:
            self.dataloaders  # noqa: B018  joins the datasets
            self._train_loader = train_loader(
                self.datasets["train"],
                self.spec.batch_size_train or 0,
                self._workers,
                self.spec.seed,
                self.cuda_enabled,
                self.spec.on_bad_sample,
                self.spec.group_by_length,
            )
        return self._train_loader

    def _use_features(self, splits: Iterable[str]) -> None:
        """With `run.feature_cache`, let these splits give features in place of pictures; what is missing is computed.

        Before the model is wrapped: afterwards its vision encoder is put away.
        """
        if self.spec.feature_cache is None:
            return
        # By name, until they are joined.
        named = self.datasets.values() if self._dataloaders is None else [self.datasets]
        used = [found[split] for split in dict.fromkeys(splits) for found in named if split in found]
        self._model = self._model.to(self.device)
        batch_size = self.spec.batch_size_eval or self.spec.batch_size_train or 16
        filling = Filling(Encoder(self._model), batch_size, self._workers, self.spec.on_bad_sample == "skip")
        prepare(self.spec.feature_cache, used, filling)

    def _eval_loader(self, dataset: Any) -> Any:
        batch_size = self.spec.batch_size_eval or self.spec.batch_size_train or 16
        return eval_loader(dataset, batch_size, self._workers, self.spec.use_dist_eval_sampler, self.cuda_enabled)

    @property
    def _workers(self) -> int:
        return data_workers(self.spec.num_workers, self.cuda_enabled)
