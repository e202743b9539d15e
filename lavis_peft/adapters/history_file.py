"""Reading `result/adalora_history.json` of a run's folder, checked before anything is made of it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_peft.adapters.history import VERSION, table
from lavis_peft.checks import shortened
from lavis_peft.errors import DataError

HISTORY = Path("result") / "adalora_history.json"

_UNITS = ("rank", "parameters")
_LAYER = {"part": str, "name": str, "word": str, "init_r": int, "price": int}
_PHASES = ("total_step", "tinit", "tfinal", "deltaT")
_PER_LAYER = ("ranks", "importance", "importance_kept")


def read_history(run_dir: Path) -> dict[str, Any]:
    """The history of a run with AdaLoRA.

    Args:
        run_dir: The run's folder.

    Returns:
        The JSON object that `history` describes.

    Raises:
        DataError: The folder isn't a run's, the run had no AdaLoRA, or the file is damaged or of another version.
    """
    path = run_dir / HISTORY
    if not path.is_file():
        raise DataError(_why_absent(run_dir))
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, not JSON: {error}") from None
    version = history.get("version") if isinstance(history, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise DataError(f"{path}: version {version}; this lavis-peft reads version {VERSION}")
    problems = _problems(history)
    if problems:
        raise DataError(f"{path}: damaged: {shortened(problems, shown=5)}")
    return history


def _why_absent(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return f"{run_dir}: no such folder; give a run's folder, <run.output_dir>/<job id>"
    if (run_dir / HISTORY.name).is_file():
        return f"{run_dir}: this is the run's result folder; give the run's own, {run_dir.parent}"
    if not (run_dir / "result").is_dir():
        return f"{run_dir}: not a run's folder, for it has no result/ in it; give <run.output_dir>/<job id>"
    return f"{run_dir}: no {HISTORY}, so this run had no AdaLoRA (model.adapters: peft_type: ADALORA) to report on"


def _problems(history: Any) -> list[str]:
    """What keeps the file from being read; shapes first, since the rest counts on them."""
    if not isinstance(history, dict):
        return ["not a JSON object"]
    if not _is_int(history.get("version")):
        return ["no version number"]
    problems = [] if history.get("unit") in _UNITS else [f"unit {history.get('unit')!r} is none of {', '.join(_UNITS)}"]
    problems += [] if _is_int(history.get("step")) else ["no step number"]
    absent = [key for key in ("layers", "pools", "changes", *_PER_LAYER) if not isinstance(history.get(key), list)]
    if absent:
        return [*problems, *(f"no list '{key}'" for key in absent)]
    layers = history["layers"]
    problems += [] if layers else ["no adapted layer"]
    problems += [f"layers[{n}]: {why}" for n, layer in enumerate(layers) if (why := _layer_problem(layer))]
    problems += [f"pools[{n}]: {why}" for n, pool in enumerate(history["pools"]) if (why := _pool_problem(pool))]
    for key in _PER_LAYER:
        if len(history[key]) != len(layers):
            problems.append(f"{key} has {len(history[key])} entries for {len(layers)} layers")
    return problems or _contradictions(history)


def _contradictions(history: Mapping[str, Any]) -> list[str]:
    """What can't be true together, in a file whose shapes are right."""
    layers = history["layers"]
    pooled = [part for pool in history["pools"] for part in pool["parts"]]
    parts = {layer["part"] for layer in layers}
    problems = [
        f"part '{part}' belongs to {pooled.count(part)} pools" for part in sorted(parts) if pooled.count(part) != 1
    ]
    problems += [f"part '{part}' has no layer" for part in sorted(set(pooled) - parts)]
    scores = [*history["importance"], *history["importance_kept"]]
    if not all(score is None or (isinstance(score, (int, float)) and math.isfinite(score)) for score in scores):
        problems.append("an importance is neither a finite number nor null")
    last = 0
    for number, change in enumerate(history["changes"]):
        if not (isinstance(change, list) and len(change) == 3 and all(map(_is_int, change))):
            return [*problems, f"changes[{number}] is not [step, layer, rank]"]
        step, layer, rank = change
        if step < last or not 0 <= layer < len(layers) or not 0 <= rank <= layers[layer]["init_r"]:
            return [*problems, f"changes[{number}] {change} can't be"]
        last = step
    if not problems and table(history)[1][-1] != history["ranks"]:
        problems.append("ranks are not what the changes lead to")
    return problems


def _layer_problem(layer: Any) -> str:
    if not isinstance(layer, dict):
        return "not an object"
    wrong = [key for key, kind in _LAYER.items() if not isinstance(layer.get(key), kind)]
    wrong += [key for key in ("init_r", "price") if key not in wrong and layer[key] < 1]
    number = layer.get("layer")
    right = "layer" in layer and (number is None or (_is_int(number) and number >= 0))
    wrong += [] if right else ["layer"]
    return f"{', '.join(wrong)} missing or wrong" if wrong else ""


def _pool_problem(pool: Any) -> str:
    parts = pool.get("parts") if isinstance(pool, dict) else None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        return "no list 'parts' of names"
    wrong = [key for key in ("initial", "target") if not _is_int(pool.get(key))]
    if any(key in pool for key in _PHASES):  # a budget that was never started has none
        wrong += [key for key in _PHASES if not _is_int(pool.get(key))]
    return f"{', '.join(wrong)} missing or wrong" if wrong else ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
