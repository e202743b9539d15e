"""What building a model takes: peak memory beside the bytes of its weights, and time.

    python projects/bench/loading_memory.py [--layers 24] [--depth 39] [--against lavis] [--folder DIR] [--json]

Writes an InstructBLIP with random weights at the published sizes (8.5 GB of disk: FLAN-T5-XL in bf16, in safetensors
shards; ViT-g in fp16 and Q-Former in float32, as .pth), builds the model from it in a process of its own, and removes
the files. No GPU, no network. After the build each weight is read once, since files that are mapped take memory only
then. The process's memory is read from /proc: all of it, and without the pages of files, which the system may take back
at any time. What the process had after its imports is subtracted.

`--against lavis` also follows LAVIS's procedure, written anew: the language model by plain `from_pretrained`, each
parameter cast afterwards; ViT and Q-Former with random weights first, and their files copied into them. Where the
installed transformers reads float32 by that, it takes twice the weights: choose fewer layers than 24.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merge_memory import SHARD, T5, watched  # beside this file

ARCH = "blip2_t5_instruct_peft"
PARTS = ("llm", "vit.pth", "base.pth")


def section_of(folder: Path, depth: int) -> dict[str, Any]:
    """The `model` section of what `make` writes."""
    full = {"embed_dim": 1408, "depth": depth, "num_heads": 16, "patch_size": 14, "mlp_ratio": 4.3637}
    return {
        "arch": ARCH,
        "model_type": "flant5xl",
        "load_pretrained": True,
        "pretrained": str(folder / "base.pth"),
        "t5_model": str(folder / "llm"),
        "vit_model": {**full, "weights": str(folder / "vit.pth")},
        "qformer_tokenizer": str(folder / "bert"),
        "adapters": {"qformer": {"peft_type": "LORA", "sublayers": ["self_attention", "ffn"], "r": 8, "lora_alpha": 8}},
    }


def make(folder: Path, layers: int, depth: int) -> None:
    """Write the weights, one tensor of the language model at a time."""
    import torch

    import lavis_peft

    lavis_peft.register()
    from lavis.common.registry import registry

    from lavis_peft.bench.words import Vocabulary
    from lavis_peft.hf.tokens import write_json
    from lavis_peft.hf.writing import ShardWriter

    llm = folder / "llm"
    Vocabulary(32000).language_model(llm, "t5")
    Vocabulary(30517).bert(folder / "bert")
    write_json(llm / "config.json", {**T5, "num_layers": layers, "num_decoder_layers": layers})
    for name in ("base.pth", "vit.pth"):
        (folder / name).touch()
    section = section_of(folder, depth)
    section["vit_model"] = {key: value for key, value in section["vit_model"].items() if key != "weights"}
    model = registry.get_model_class(ARCH).on_meta({**section, "adapters": {}})
    noise = torch.randn(1 << 22).mul_(0.02)  # the same numbers again and again: drawing them all takes a minute
    files: dict[str, dict[str, Any]] = {"base.pth": {}, "vit.pth": {}}
    writer = ShardWriter(llm, SHARD)
    for name, shape in model.state_dict().items():
        if "embed_tokens" in name or "position_ids" in name:
            continue
        value = noise.repeat(-(-shape.numel() // noise.numel()))[: shape.numel()].view(shape.shape).to(shape.dtype)
        part, _, rest = name.partition(".")
        if part == "t5_model":
            writer.add(rest, value)
        elif part == "visual_encoder":
            files["vit.pth"][rest] = value.half().clone()  # the published file is fp16 throughout
        else:
            files["base.pth"][name] = value.clone()
    writer.close()
    torch.save(files["vit.pth"], folder / "vit.pth")
    torch.save({"model": files["base.pth"]}, folder / "base.pth")


def build(folder: Path, depth: int, who: str) -> dict[str, float]:
    """Build the model, in a process that does nothing else."""
    import torch

    import lavis_peft

    lavis_peft.register()
    import transformers.models.t5.modeling_t5  # noqa: F401  imported here, so that its memory isn't the model's
    from lavis.common.registry import registry

    build_one: Callable[[], Any] = {
        "lavis-peft": lambda: registry.get_model_class(ARCH).from_config(section_of(folder, depth)),
        "lavis": lambda: as_lavis(folder, section_of(folder, depth)),
    }[who]
    torch.zeros(1)
    before, begin = memory_now(), time.monotonic()
    model = build_one()
    seconds = time.monotonic() - begin
    for parameter in model.parameters():
        parameter.detach().view(-1).view(torch.uint8)[::1024].sum()
    parameters = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    return {**before, "seconds": seconds, "model_gb": sum(parameters.values()) / 1e9}


def as_lavis(folder: Path, section: dict[str, Any]) -> Any:
    """LAVIS's procedure with the same parts."""
    import torch
    from lavis.models import eva_vit
    from torch import nn
    from transformers import T5ForConditionalGeneration

    from lavis_peft.models.qformer import build_qformer
    from lavis_peft.models.spec import parse_model

    vit = section["vit_model"]
    model = nn.Module()
    model.visual_encoder = eva_vit.VisionTransformer(
        img_size=224, qkv_bias=True, **{key: value for key, value in vit.items() if key != "weights"}
    )
    model.visual_encoder.load_state_dict(torch.load(vit["weights"], map_location="cpu", weights_only=True), strict=True)
    eva_vit.convert_weights_to_fp16(model.visual_encoder)
    model.ln_vision = nn.LayerNorm(vit["embed_dim"])
    spec = parse_model(section, family="t5", llm_key="t5_model")
    model.Qformer, model.query_tokens = build_qformer(spec, vit["embed_dim"], 30523)
    model.t5_model = T5ForConditionalGeneration.from_pretrained(section["t5_model"])
    for parameter in model.t5_model.parameters():
        parameter.requires_grad = False
        parameter.data = parameter.data.bfloat16()
    model.t5_proj = nn.Linear(model.Qformer.config.hidden_size, model.t5_model.config.hidden_size)
    state = torch.load(section["pretrained"], map_location="cpu", weights_only=True)["model"]
    unread = model.load_state_dict(state, strict=False).unexpected_keys
    if unread:
        sys.exit(f"not read: {unread[:3]}")
    return model


def memory_now() -> dict[str, float]:
    """This process's memory in GB."""
    from merge_memory import memory

    found = memory("self")
    return {"before_gb": found["VmRSS"] * 1024 / 1e9, "before_anonymous_gb": found["RssAnon"] * 1024 / 1e9}


def measured(folder: Path, depth: int, who: str) -> dict[str, float]:
    """Peak memory and time of one build."""
    command = [sys.executable, __file__, "--build", who, "--folder", str(folder), "--depth", str(depth)]
    output, peaks = watched(command)
    child = json.loads(output.splitlines()[-1])
    weights = sum(file.stat().st_size for part in PARTS for file in _files(folder / part)) / 1e9
    without_files = peaks["RssAnon"] * 1024 / 1e9 - child["before_anonymous_gb"]
    return {
        "weights_on_disk_gb": weights,
        "weights_in_model_gb": child["model_gb"],
        "peak_gb": peaks["VmRSS"] * 1024 / 1e9 - child["before_gb"],
        "peak_without_files_gb": without_files,
        "peak_without_files_over_model": without_files / child["model_gb"],
        "seconds": child["seconds"],
        "imports_gb": child["before_gb"],
    }


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.iterdir() if file.suffix == ".safetensors"]


def main() -> None:
    """Make the weights, build the model once or twice, say the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="of T5's encoder and of its decoder")
    parser.add_argument("--depth", type=int, default=39, help="blocks of the vision encoder")
    parser.add_argument("--against", choices=("lavis",), action="append", default=[])
    parser.add_argument("--folder", help="where to write; emptied afterwards; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)  # in processes of their own, which
    parser.add_argument("--build", help=argparse.SUPPRESS)  # give their memory back
    arguments = parser.parse_args()
    if arguments.make:
        return make(Path(arguments.folder), arguments.layers, arguments.depth)
    if arguments.build:
        sys.stdout.write(f"\n{json.dumps(build(Path(arguments.folder), arguments.depth, arguments.build))}\n")
        return None
    if arguments.folder:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loading_memory_", dir=arguments.folder))
    try:
        sizes = ["--layers", str(arguments.layers), "--depth", str(arguments.depth)]
        subprocess.run([sys.executable, __file__, "--make", "--folder", str(folder), *sizes], check=True)
        figures = {who: measured(folder, arguments.depth, who) for who in ("lavis-peft", *arguments.against)}
    finally:
        shutil.rmtree(folder)
    lines = [f"{who}: {key} {value:.3g}" for who, own in figures.items() for key, value in own.items()]
    sys.stdout.write((json.dumps(figures, indent=2) if arguments.json else "\n".join(lines)) + "\n")
    return None


if __name__ == "__main__":
    main()
