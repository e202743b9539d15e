"""Methods whose layers share tensors, on both parts: trained, evaluated and merged by real processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

import lavis_peft

lavis_peft.register()

from lavis_peft.adapters.methods import known_peft_types  # noqa: E402
from lavis_peft.cli import main  # noqa: E402

CODE = "from lavis_peft.cli import main; main()"


@pytest.fixture
def lavis_peft_command(nursery: Any, tmp_path: Path) -> Callable[..., str]:
    """Run a command of `lavis-peft` in a process of its own; gives what it wrote."""

    def command(*arguments: object) -> str:
        output = tmp_path / "output.txt"
        output.write_text("")
        process = nursery.start(CODE, output, *arguments, OMP_NUM_THREADS=1)
        assert process.wait() == 0, output.read_text()
        return output.read_text()

    return command


def test_matrices_in_common_come_through_a_whole_run(
    model_section: Callable[..., dict[str, Any]],
    tuned_run: Callable[..., tuple[Path, Path, Any]],
    run_file: Callable[..., Path],
    lavis_peft_command: Callable[..., str],
    tmp_path: Path,
) -> None:
    second = {"peft_type": "RANDLORA", "r": 4}
    if "RANDLORA" not in known_peft_types():
        second = {"peft_type": "VBLORA", "vector_length": 8, "num_vectors": 12}
    adapters = {
        "qformer": {"peft_type": "VERA", "sublayers": ["self_attention", "cross_attention", "ffn"], "r": 16},
        "llm": {**second, "sublayers": ["attention", "ffn"]},
    }
    # Its base weights in files, as merging needs them.
    written, _, _ = tuned_run(model_section("t5", adapters=adapters))
    model = {**OmegaConf.load(written).model, "model_type": "flant5xl"}
    config = run_file(max_epoch=2, init_lr=0.05)
    OmegaConf.save({**OmegaConf.load(config), "model": model}, config)

    lavis_peft_command("train", "--cfg-path", config)
    (folder,) = (tmp_path / "output").iterdir()
    checkpoint = folder / "checkpoint_best.pth"
    state = torch.load(checkpoint, weights_only=True)["model"]
    for name in ("vera_A", "vera_B", "randlora_A" if second["peft_type"] == "RANDLORA" else "vblora_vector_bank"):
        assert len([key for key in state if f".{name}." in key]) == 1  # once, not for each layer
    expected = json.loads((folder / "result" / "metrics_test.json").read_text())

    loaded = (f"run.resume_ckpt_path={checkpoint}", f"run.output_dir={tmp_path / 'again'}")
    found = lavis_peft_command("evaluate", "--cfg-path", config, "--options", *loaded, "--json")
    (again,) = (tmp_path / "again").iterdir()
    assert json.loads((again / "result" / "metrics_test.json").read_text()) == expected, found

    arguments = ["--cfg-path", config, "--checkpoint", checkpoint, "--output", tmp_path / "merged", "--json"]
    merged = CliRunner().invoke(main, ["merge", *map(str, arguments)])
    assert merged.exit_code == 0, merged.output
    report = json.loads(merged.stdout)
    assert report["layers"] == 4 * 6 + 2 * 4 + 6 * 2 + 4 * 3
    assert report["difference"] < 1e-3 and report["layer_difference"] < 1e-5
