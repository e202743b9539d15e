"""What an AdaLoRA step costs: side by side with a LoRA step of the same ranks, at the Q-Former's published size.

    python projects/bench/adalora_cost.py [--batch 8] [--repeats 15] [--device cpu|cuda] [--json]

Steps are interleaved, so that a busy machine slows both alike; the figure is the median of the pairs' ratios. The same
allocation by peft's own RankAllocator is measured beside ours.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lavis_peft

lavis_peft.register()

import peft  # noqa: E402  after the plugin made the installed libraries fit each other
import transformers  # noqa: E402

from lavis_peft.adapters import inject  # noqa: E402
from lavis_peft.adapters.spec import parse_adapters  # noqa: E402

QUERIES, TEXT, PATCHES, VISION = 32, 16, 257, 1408
SUBLAYERS = ["self_attention", "cross_attention", "ffn"]
LORA = {"peft_type": "LORA", "sublayers": SUBLAYERS, "r": 12, "lora_alpha": 12}
ADALORA = {
    "peft_type": "ADALORA", "sublayers": SUBLAYERS, "init_r": 12, "target_r": 4, "tinit": 1, "tfinal": 1, "deltaT": 10,
}  # fmt: skip


def build(section: dict[str, Any], device: str) -> tuple[nn.Module, Any]:
    """LAVIS's Q-Former at its published size with an adapter, and the adapter's rank budget if it has one."""
    from lavis.models.blip2_models.Qformer import BertLMHeadModel
    from transformers import BertConfig

    config = BertConfig(vocab_size=30523)
    config.encoder_width, config.add_cross_attention = VISION, True
    config.cross_attention_freq, config.query_length = 2, QUERIES
    torch.manual_seed(0)
    bert = BertLMHeadModel(config).bert.to(device)
    spec = parse_adapters({"qformer": section, "train": []}, llm_family="t5")
    inject.apply(spec, {"qformer": bert}, {"qformer": "qformer"}, {})
    return bert.train(), inject.rank_budget(spec, {"qformer": bert}, {"qformer": "qformer"})


def trainer(model: nn.Module, budget: Any, batch: int, device: str) -> Callable[[], None]:
    """One optimizer step of a model, the budget's share in it included."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 1000, (batch, TEXT), generator=generator).to(device)
    queries = torch.randn(batch, QUERIES, 768, generator=generator).to(device)
    image = torch.randn(batch, PATCHES, VISION, generator=generator).to(device)
    ones = {
        "attention_mask": torch.ones(batch, QUERIES + TEXT, dtype=torch.long, device=device),
        "encoder_attention_mask": torch.ones(batch, PATCHES, dtype=torch.long, device=device),
    }

    def step() -> None:
        output = model(ids, query_embeds=queries, encoder_hidden_states=image, return_dict=True, **ones)
        loss = output.last_hidden_state[:, :QUERIES].square().mean()
        (loss if budget is None else loss + budget.penalty()).backward()
        optimizer.step()
        if budget is not None:
            budget.after_step()
        optimizer.zero_grad()

    return step


def seconds(action: Callable[[], Any], device: str) -> float:
    """Wall time of an action, its GPU work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(batch: int, repeats: int, device: str) -> dict[str, Any]:
    """Median step times in seconds, the ratio of AdaLoRA to LoRA with its quartiles, and both allocators."""
    lora, _ = build(LORA, device)
    ada, budget = build(ADALORA, device)
    budget.start(10 * repeats + 100)
    steps = {"lora": trainer(lora, None, batch, device), "adalora": trainer(ada, budget, batch, device)}
    for step in steps.values():
        step()
    times = [{name: seconds(step, device) for name, step in steps.items()} for _ in range(repeats)]
    ratios = sorted(pair["adalora"] / pair["lora"] for pair in times)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "lora_s": statistics.median(pair["lora"] for pair in times),
        "adalora_s": statistics.median(pair["adalora"] for pair in times),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        **allocators(ada, budget, device),
    }


def allocators(model: nn.Module, budget: Any, device: str) -> dict[str, float]:
    """Seconds of one allocation step, ours and peft's, on the same gradients."""
    from peft.tuners.adalora.layer import RankAllocator

    config = peft.AdaLoraConfig(init_r=12, target_r=4, tinit=1, tfinal=1, deltaT=10, total_step=1000)
    theirs = RankAllocator(model, config, "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    ours: list[float] = []
    peers: list[float] = []
    for step in range(2, 22):
        peers.append(seconds(lambda step=step: theirs.update_and_allocate(model, step), device))
        ours.append(seconds(budget.after_step, device))
    return {"allocator_s": statistics.median(ours), "peft_allocator_s": statistics.median(peers)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pictures in a step (default: 8)")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps (default: 15)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "batch": options.batch,
        "repeats": options.repeats,
        **measure(options.batch, options.repeats, options.device),
    }
    if options.json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    low, high = found["ratio_quartiles"]
    print(f"LoRA {found['lora_s']:.3f} s, AdaLoRA {found['adalora_s']:.3f} s a step of {options.batch}")  # noqa: T201
    print(f"ratio {found['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})")  # noqa: T201
    print(f"allocation: ours {found['allocator_s']:.4f} s, peft's {found['peft_allocator_s']:.4f} s")  # noqa: T201


if __name__ == "__main__":
    main()
