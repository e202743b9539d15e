"""The instruction stages: Q-Former, projection and a tiny language model learn together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vocabulary
from instructions import Scene, things_of, write_instruction
from pictures import COLOR_NAMES, SHAPES, SIDE, Pictures
from safetensors.torch import load_file
from settings import Settings
from stages import Log, encode_pictures, save_half, steps_of, vision_sizes
from torch import Tensor, nn

HELD_OUT = 2048
_POOL_SEED, _HELD_OUT_SEED, _WRITER_SEED = 2, 3, 4
_LLM_CONFIG: dict[str, dict[str, Any]] = {
    "t5": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "decoder_start_token_id": 0},
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False},
}
_ANSWERS = {"yes/no": ("yes", "no"), "color": COLOR_NAMES, "shape": SHAPES}


class Pool:
    """Encoded pictures to write instructions about.

    Args:
        pictures: What is in the pictures.
        features: (number, P + 1, D) from the frozen vision encoder.
    """

    def __init__(self, pictures: Pictures, features: Tensor) -> None:
        self.scenes: list[Scene] = [things_of(pictures, index) for index in range(len(pictures))]
        self.features = features

    def batch(self, rng: np.random.Generator, indices: np.ndarray) -> dict[str, Any]:
        """Samples as the plugin's models read them, features in the place of pictures."""
        asked = [write_instruction(rng, self.scenes[index]) for index in indices]
        return {
            "image": self.features[torch.from_numpy(indices)].float(),
            "text_input": [text for text, _ in asked],
            "text_output": [answer for _, answer in asked],
        }


def make_pools(settings: Settings, output: Path) -> tuple[Pool, Pool]:
    """Pictures to train on, and pictures held out."""
    return (
        Pool(*encode_pictures(settings, output, _POOL_SEED, settings.pictures)),
        Pool(*encode_pictures(settings, output, _HELD_OUT_SEED, HELD_OUT)),
    )


def model_section(settings: Settings, output: Path, family: str) -> dict[str, Any]:
    """The `model` section of a tiny model with random weights beside the vision encoder's."""
    return {
        "vit_model": {**vision_sizes(settings), "weights": str(output / "vit.safetensors")},
        "image_size": SIDE,
        "vit_precision": "fp32",
        "llm_precision": "fp32",
        "num_query_token": settings.queries,
        "qformer": qformer_sizes(settings),
        "qformer_tokenizer": str(output / "bert"),
        "llm_tokenizer": str(output / family),
        {"t5": "t5_model", "llama": "llm_model"}[family]: _llm_sizes(settings, family),
        "adapters": {"qformer": "full", "llm": "frozen"},
    }


def qformer_sizes(settings: Settings) -> dict[str, Any]:
    """The Q-Former's sizes as BERT's config names them."""
    return {
        "hidden_size": settings.width,
        "num_hidden_layers": settings.qformer_layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.feed_forward,
        "max_position_embeddings": 160,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _llm_sizes(settings: Settings, family: str) -> dict[str, Any]:
    return _t5_sizes(settings) if family == "t5" else _llama_sizes(settings)


def _t5_sizes(settings: Settings) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary.T5_SPECIAL) + len(vocabulary.words()),
        "d_model": settings.width,
        "d_kv": settings.width // settings.heads,
        "d_ff": settings.feed_forward,
        "num_layers": settings.llm_layers,
        "num_decoder_layers": settings.llm_layers,
        "num_heads": settings.heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _llama_sizes(settings: Settings) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary.LLAMA_SPECIAL) + len(vocabulary.words()),
        "hidden_size": settings.width,
        "intermediate_size": settings.feed_forward,
        "num_hidden_layers": settings.llm_layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def build_model(settings: Settings, output: Path, family: str) -> nn.Module:
    """The plugin's model with everything but the vision encoder trainable; it takes features for pictures."""
    import lavis_peft

    lavis_peft.register()
    from lavis_peft.models.t5 import Blip2T5InstructPeft
    from lavis_peft.models.vicuna import Blip2VicunaInstructPeft

    torch.manual_seed(settings.seed)
    model_class = Blip2T5InstructPeft if family == "t5" else Blip2VicunaInstructPeft
    model = model_class.from_config(model_section(settings, output, family))
    model.llm.config.decoder_start_token_id = _LLM_CONFIG[family].get("decoder_start_token_id")
    model.requires_grad_(True).train()
    model.visual_encoder.requires_grad_(False)
    model.visual_encoder.forward = _unchanged
    return model


def _start_from(model: nn.Module, path: Path) -> None:
    # Reading pictures is the slow part to learn, comparing them with an instruction most of all; what feeds one
    # language model is a good start for another. Alone, a LLaMA was still guessing at yes or no after 2,000 steps.
    own = model.state_dict()
    with torch.no_grad():
        for key, value in load_file(path).items():
            if not key.startswith("t5_proj."):
                own[key].copy_(value)


def _unchanged(features: Tensor) -> Tensor:
    """Stands in for the vision encoder's pass: the batches hold its features already."""
    return features


def train_language(settings: Settings, output: Path, family: str, pools: tuple[Pool, Pool], log: Log) -> None:
    """Teach a Q-Former and a language model to follow instructions about drawn pictures.

    Writes the language model's folder, and `FAMILY_qformer.safetensors` with the rest under LAVIS's key names.

    Args:
        settings: Sizes, steps and seed.
        output: Where the stage before left its files.
        family: `t5` or `llama`.
        pools: Pictures to train on, and pictures held out.
        log: Gets the loss, and at the end the accuracy on held-out pictures.
    """
    pool, held_out = pools
    model = build_model(settings, output, family)
    if family == "llama":
        _start_from(model, output / "t5_qformer.safetensors")
    stage = settings.t5 if family == "t5" else settings.llama
    rng = np.random.default_rng([settings.seed, _WRITER_SEED])
    losses = []
    for step, descend in steps_of(stage, [p for p in model.parameters() if p.requires_grad]):
        loss = model(pool.batch(rng, rng.integers(len(pool.scenes), size=stage.batch)))["loss"]
        descend(loss)
        losses.append(loss.item())
        if step % 50 == 0 or step == stage.steps:
            log(stage=family, step=step, loss=float(np.mean(losses[-50:])))
        if step % 500 == 0 or step == stage.steps:
            log(stage=family, step=step, held_out=True, **held_out_accuracy(model, held_out, settings.seed))
    save_language(model, settings, output, family)


def held_out_accuracy(model: nn.Module, pool: Pool, seed: int) -> dict[str, float]:
    """Accuracy on the held-out pictures, for each kind of one-word answer, by ranking the kind's answers."""
    model.eval()
    batch = pool.batch(np.random.default_rng(seed), np.arange(len(pool.scenes)))
    accuracy = {}
    for kind, answers in _ANSWERS.items():
        rows = [row for row, answer in enumerate(batch["text_output"]) if answer in answers]
        if not rows:
            continue
        texts = [batch["text_input"][row] for row in rows]
        scores = model.score_candidates(batch["image"][rows], texts, [list(answers)] * len(rows))
        right = [answers[int(s.argmin())] == batch["text_output"][row] for row, s in zip(rows, scores, strict=True)]
        accuracy[kind] = float(np.mean(right))
    model.train()
    return accuracy


def save_language(model: nn.Module, settings: Settings, output: Path, family: str) -> None:
    """Write the trained weights; the Q-Former's file last, since it marks the stage as done."""
    llm = model.llm
    if family == "llama":
        # The padding token that InstructBLIP adds after loading isn't LLaMA's; the folder holds LLaMA's own.
        llm.resize_token_embeddings(len(vocabulary.LLAMA_SPECIAL) + len(vocabulary.words()))
    # Written by hand: what transformers writes depends on its version, and this is all that any version needs.
    config = _LLM_CONFIG[family] | _llm_sizes(settings, family)
    (output / family / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tied = {name for name, _ in llm.named_parameters()}
    save_half({k: v for k, v in llm.state_dict().items() if k in tied}, output / family / "model.safetensors")
    skipped = ("visual_encoder.", "t5_model.", "llm_model.")
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(skipped) and not k.endswith("position_ids")}
    save_half(rest, output / f"{family}_qformer.safetensors")
