"""Run configs in the research code's form, and data in the form that it reads."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

SWITCHES = ("self_attention_qv_lora", "ffn_lora", *(f"qformer_crossattention_lora_{name}" for name in "qkvo"))
SPLITS = {"train": 8, "val": 3, "test": 4}
COLORS = ("red", "blue")


def config(arch: str, dataset: str = "scienceqa", run: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A run config with every key that its numbered ones have.

    Args:
        arch: One of its models.
        dataset: One of its datasets.
        run: Keys of the `run` section to replace.
        changes: Keys of the `model` section to replace; None removes one.
    """
    model = {"arch": arch, "model_type": "flant5xl" if "t5" in arch else "vicuna7b", "load_pretrained": True}
    model["freeze_vit"] = True
    if "llm" in arch or "qformer" not in arch:
        model |= {"llm_lora_r": 8, "llm_lora_apply": "all"}
    if "qformer" in arch:
        model |= {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0, "self_attention_output_lora": False}
        model |= dict.fromkeys(SWITCHES, True)
    section = {
        "train_samples_portion": "all",
        "vis_processor": {
            "train": {"name": "blip2_image_train", "image_size": 224},
            "eval": {"name": "blip_image_eval", "image_size": 224},
        },
        "text_processor": {split: {"name": "instruct_blip_question"} for split in ("train", "eval")},
    }
    kept = {key: value for key, value in {**model, **changes}.items() if value is not None}
    return {"model": kept, "datasets": {dataset: section}, "run": {**_run(dataset), **(run or {})}}


def _run(task: str) -> dict[str, Any]:
    return {
        "task": task,
        "lr_sched": "linear_decay_lr",
        "init_lr": 1e-4,
        "min_lr": 0,
        "warmup_lr": 1e-4,
        "warmup_steps": 0,
        "weight_decay": 0.05,
        "max_epoch": 15,
        "batch_size_train": 16,
        "accum_grad_iters": 1,
        "batch_size_eval": 1,
        "num_workers": 4,
        "inference_method": "rank",
        "seed": 42,
        "output_dir": "output",
        "amp": True,
        "resume_ckpt_path": None,
        "evaluate": False,
        "train_splits": ["train"],
        "valid_splits": ["val"],
        "test_splits": ["test"],
        "device": "cuda",
        "world_size": 1,
        "dist_url": "env://",
        "distributed": True,
    }


def write_run(folder: Path, arch: str, run: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a config for the tiny model that trains on ScienceQA's form of a few pictures in the folder."""
    here = {"device": "cpu", "amp": False, "num_workers": 0, "max_epoch": 2, "batch_size_train": 4, "init_lr": 1e-2}
    here |= {"output_dir": str(folder / "output"), **(run or {})}
    content = config(arch, run=here, model_type="tiny", **changes)
    section = content["datasets"]["scienceqa"]
    for processor in section["vis_processor"].values():
        processor["image_size"] = 64
    files = {split: {"storage": _write_questions(folder, split, count)} for split, count in SPLITS.items()}
    section["build_info"] = {"annotations": files, "images": {split: {"storage": str(folder)} for split in SPLITS}}
    path = folder / "old.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _write_questions(folder: Path, split: str, count: int) -> str:
    records = []
    for number in range(count):
        image = f"scienceqa/images/{split}/{number}/image.png"
        (folder / image).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), COLORS[number % 2]).save(folder / image)
        answer = f"({'ab'[number % 2]}) {COLORS[number % 2]}"
        texts = {"question": "what color is the picture ?", "context": "look  at it", "choices": list(COLORS)}
        records.append({"image": image, "answer": answer, "question_id": number, **texts})
    path = folder / f"scienceqa_{split}.json"
    path.write_text(json.dumps(records))
    return str(path)
