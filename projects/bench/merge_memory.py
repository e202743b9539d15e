"""What `lavis-peft merge` needs for a language model of FLAN-T5-XL's size: peak memory and time.

    python projects/bench/merge_memory.py [--folder DIR] [--layers 24] [--format lavis|hf] [--json]

Takes 12 GB of disk (6 for random weights in bf16, in six shards, and 6 for the merged ones), no GPU, no network. The
Q-Former and the vision encoder are small, the T5 has FLAN-T5-XL's sizes; LoRA is on every sub-layer of both parts.
`lavis-peft merge` runs in a process of its own, whose memory is read from /proc every 20 ms: all of it, and without the
pages of files, which the system may take back at any time.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARD = 10**9
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
MODEL: dict[str, Any] = {
    "arch": "blip2_t5_instruct_peft",
    "model_type": "flant5xl",
    "load_pretrained": True,
    "vit_model": {"embed_dim": 96, "depth": 2, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2.0},
    "vit_precision": "fp32",
    "image_size": 64,
    "num_query_token": 8,
    "qformer": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "max_position_embeddings": 160,
    },
    "adapters": {
        "qformer": {**LORA, "sublayers": ["self_attention", "cross_attention", "ffn"]},
        "llm": {**LORA, "sublayers": ["attention", "ffn"]},
    },
}


def make(folder: Path, layers: int) -> int:
    """Write base weights, a checkpoint and a run config; return the bytes of the language model."""
    import torch
    import yaml

    import lavis_peft

    lavis_peft.register()
    from lavis.common.registry import registry

    from lavis_peft.hf.tokens import copy_tokenizer, write_json
    from lavis_peft.hf.writing import ShardWriter
    from lavis_peft.paths import tiny_dir

    llm = folder / "llm"
    copy_tokenizer(tiny_dir() / "t5", llm)
    write_json(llm / "config.json", {**T5, "num_layers": layers, "num_decoder_layers": layers})
    section = {**MODEL, "pretrained": str(folder / "base.pth"), "t5_model": str(llm)}
    section["qformer_tokenizer"] = str(tiny_dir() / "bert")
    model = registry.get_model_class(section["arch"]).on_meta(section)
    torch.manual_seed(0)
    files: dict[str, dict[str, Any]] = {"base.pth": {}, "vit.pth": {}, "checkpoint.pth": {}}
    writer = ShardWriter(llm, SHARD)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, shape in model.state_dict().items():
        value = torch.randn(shape.shape).mul_(0.02) if shape.is_floating_point() else torch.zeros(shape.shape)
        part, _, rest = name.replace("base_layer.", "").partition(".")
        if name in trained:
            files["checkpoint.pth"][name] = value
        if "lora_" in name or "embed_tokens" in name:
            continue
        if part == "t5_model":
            writer.add(rest, value.bfloat16())
        elif part == "visual_encoder":
            files["vit.pth"][rest] = value
        else:
            files["base.pth"][name.replace("base_layer.", "")] = value
    for name, state in files.items():
        torch.save({"model": state}, folder / name)
    section["vit_model"] = {**MODEL["vit_model"], "weights": str(folder / "vit.pth")}
    run = {"runner": "runner_peft", "task": "multiple_choice_vqa"}
    content = {"model": section, "datasets": {"instruct_json": {"type": "default"}}, "run": run}
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return writer.close()


def merge(folder: Path, layout: str) -> dict[str, float]:
    """Merge what `make` wrote, and watch the process."""
    command = [sys.executable, "-m", "lavis_peft.cli", "merge", "--cfg-path", str(folder / "run.yaml")]
    command += ["--checkpoint", str(folder / "checkpoint.pth"), "--output", str(folder / "out")]
    command += ["--format", layout, "--verify", "layers", "--json"]
    begin = time.monotonic()
    output, peaks = watched(command)
    report = json.loads(output)
    return {
        "adapted_layers": report["layers"],
        "seconds": time.monotonic() - begin,
        "peak_gb": peaks["VmRSS"] * 1024 / 1e9,
        "peak_without_files_gb": peaks["RssAnon"] * 1024 / 1e9,
        "largest_difference_of_a_layer": report["layer_difference"],
    }


def watched(command: list[str]) -> tuple[str, dict[str, int]]:
    """Run a command that prints little; its output, and its peaks of `memory`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"VmRSS": 0, "RssAnon": 0}
    while process.poll() is None:
        for key, value in memory(process.pid).items():
            peaks[key] = max(peaks[key], value)
        time.sleep(0.02)
    if process.returncode or process.stdout is None:
        sys.exit(process.returncode)
    return process.stdout.read(), peaks


def memory(pid: int | str) -> dict[str, int]:
    """Resident memory of a process in KiB, all of it and without files; empty where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: int(found[key].split()[0]) for key in ("VmRSS", "RssAnon") if key in found}


def main() -> None:
    """Make the model, merge it, say the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; emptied afterwards; default: the system's temporary folder")
    parser.add_argument("--layers", type=int, default=24, help="of encoder and of decoder; FLAN-T5-XL has 24")
    parser.add_argument("--format", choices=("lavis", "hf"), default="lavis")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", help=argparse.SUPPRESS)  # in a process of its own, which gives its memory back
    arguments = parser.parse_args()
    if arguments.make:
        sys.stdout.write(f"{make(Path(arguments.make), arguments.layers)}\n")
        return
    if arguments.folder:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="merge_memory_", dir=arguments.folder))
    try:
        maker = [sys.executable, __file__, "--make", str(folder), "--layers", str(arguments.layers)]
        size = subprocess.run(maker, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        figures = {"weights_gb": int(size) / 1e9, **merge(folder, arguments.format)}
    finally:
        shutil.rmtree(folder)
    text = json.dumps(figures, indent=2) if arguments.json else "\n".join(f"{k}: {v:.3g}" for k, v in figures.items())
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
