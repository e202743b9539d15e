"""What only a GPU can show; skipped, and said so, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lavis_peft
from lavis_peft.paths import projects_dir

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA checks did not run")

QUICK = ["run.max_epoch=1", "run.batch_size_train=32", "datasets.easy_vqa.max_samples={train: 640, test: 300}"]


def _train(folder: Path, *options: str, launcher: tuple[str, ...] = ("-m", "lavis_peft.cli", "train")) -> dict:
    config = str(projects_dir() / "demo" / "easy_vqa_t5.yaml")
    given = [*QUICK, f"run.output_dir={folder}", *options]
    command = [sys.executable, *launcher, "--cfg-path", config, "--options", *given]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (run,) = folder.iterdir()
    return json.loads((run / "result" / "metrics_test.json").read_text())


@pytest.mark.parametrize(
    ("amp", "precision"), [("true", "fp32"), ("true", "bf16"), ("false", "bf16"), ("false", "fp32")]
)
def test_a_gpu_learns_what_a_cpu_learns(amp: str, precision: str, tmp_path: Path) -> None:
    on_cpu = _train(tmp_path / "cpu", "run.device=cpu")
    on_gpu = _train(tmp_path / "gpu", "run.device=cuda", f"run.amp={amp}", f"model.llm_precision={precision}")
    assert on_gpu["accuracy"] == pytest.approx(on_cpu["accuracy"], abs=5.0)


def test_lavis_train_py_runs_on_cuda_with_amp(tmp_path: Path) -> None:
    script = os.environ.get("LAVIS_TRAIN_PY")
    if not script:
        pytest.skip("LAVIS_TRAIN_PY doesn't name LAVIS's train.py")
    metrics = _train(tmp_path / "run", "run.device=cuda", "run.amp=true", launcher=("-m", "lavis_peft", script))
    assert metrics["total"] == 300


def test_scores_on_a_gpu_are_the_cpu_s() -> None:
    """LAVIS autocasts on a GPU, to bf16 in ranking; float32 sums of a few tokens move by bf16's rounding."""
    from PIL import Image

    config = str(projects_dir() / "demo" / "easy_vqa_t5.yaml")
    model, processor = lavis_peft.load_run(config)
    image = processor(Image.new("RGB", (64, 64), "red")).unsqueeze(0)
    texts, candidates = ["Question: what color is the shape? Short answer:"], [["red", "blue", "green"]]
    on_cpu = model.score_candidates(image, texts, candidates)[0]
    on_gpu = model.cuda().score_candidates(image.cuda(), texts, candidates)[0].cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0.05, atol=0.2)
    assert on_gpu.argsort().tolist() == on_cpu.argsort().tolist()
