"""A run's records: `log.txt` (one JSON object a line), metrics files and TensorBoard scalars."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.adapters.files import append, atomic_file, writing
from lavis_peft.errors import MissingExtra

LOG = "log.txt"
_BOARD = "tensorboard"


def plain(value: Any) -> Any:
    """Plain JSON values: numbers of numpy and torch as Python's, paths as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        try:
            return plain(value.item())
        except (ValueError, RuntimeError):
            return plain(value.tolist())
    return str(value)


class RunLog:
    """Writes what a run measured, on the main process; on the others every method does nothing.

    Args:
        output_dir: The run's folder.
        enabled: Whether this process writes.
        tensorboard: true, false or auto.

    Raises:
        MissingExtra: TensorBoard was asked for and isn't installed.
    """

    def __init__(self, output_dir: Path, enabled: bool, tensorboard: bool | str) -> None:
        self._dir = output_dir
        self._enabled = enabled
        self._board = _summary_writer(output_dir / _BOARD, tensorboard) if enabled else None

    def line(self, record: Mapping[str, Any]) -> None:
        """Append one JSON object to `log.txt`."""
        if self._enabled:
            append(self._path, json.dumps(plain(record), allow_nan=False) + "\n")

    @property
    def length(self) -> int:
        """Lines of `log.txt`; 0 on other than the main process."""
        return len(self._lines(self._path)) if self._enabled else 0

    def cut(self, length: int) -> None:
        """Take back what was logged after `log.txt` had so many lines, and what a kill left of a line."""
        if self._enabled:
            self._write(self._lines(self._path)[:length])

    def take_over(self, other: Path, length: int) -> None:
        """Append what another run had measured when its `log.txt` had so many lines; its config stays there.

        Args:
            other: The other run's folder.
            length: Lines of its log.
        """
        if self._enabled and (other / LOG).is_file():
            earlier = [line for line in self._lines(other / LOG)[:length] if not line.startswith(b'{"config": ')]
            self._write(self._lines(self._path) + earlier)

    @property
    def _path(self) -> Path:
        return self._dir / LOG

    def _lines(self, path: Path) -> list[bytes]:
        whole = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return [line for line in whole if line.endswith(b"\n")]

    def _write(self, lines: list[bytes]) -> None:
        with atomic_file(self._path) as file:
            file.write(b"".join(lines))

    def metrics(self, split: str, values: Mapping[str, Any]) -> None:
        """Write a scored split's metrics to `result/metrics_SPLIT.json`."""
        if self._enabled:
            text = json.dumps(plain(values), indent=2, allow_nan=False)
            with atomic_file(self._dir / "result" / f"metrics_{split}.json") as file:
                file.write(text.encode() + b"\n")

    def scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        """Add every number among the values to TensorBoard.

        Args:
            group: The scalars' common prefix.
            values: Nested mappings are walked.
            step: Iterations so far, or epochs: whatever the group counts.
        """
        if self._board is None:
            return
        for key, value in values.items():
            if isinstance(value, Mapping):
                self.scalars(f"{group}/{key}", value, step)
            elif isinstance(plain(value), (int, float)):
                with writing(self._dir / _BOARD):
                    self._board.add_scalar(f"{group}/{key}", plain(value), step)

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._board is not None:
            with writing(self._dir / _BOARD):
                self._board.close()


def _summary_writer(folder: Path, wanted: bool | str) -> Any:
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if wanted == "auto":
            return None
        raise MissingExtra(
            "run.tensorboard is true, but TensorBoard isn't installed: pip install lavis-peft[tensorboard]"
        ) from error
    return SummaryWriter(log_dir=str(folder))
