"""The plain way: the research code's procedure, written anew on the same parts.

LoRA as separate float32 products beside the linear layer (under autocast where the run has it), attention in plain
steps, and evaluation one question at a time (its configs say ``batch_size_eval: 1``). There a FLAN-T5 encodes a
question once and its candidates go through the decoder together; a Vicuna reads the question again for each candidate.
``Single`` is what a user writes without thinking: each candidate on its own, with picture and question anew.
"""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from lavis_peft.bench.contender import GENERATION, build, mixed_precision, optimizer_of, share_frozen, step
from lavis_peft.bench.work import Work

_IGNORE = -100


class PlainLora(nn.Module):
    """A linear layer with LoRA beside it.

    Args:
        layer: peft's layer of one adapter; its weights are shared.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base = layer.get_base_layer()
        self.down, self.up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        self.scaling = layer.scaling["default"]

    def forward(self, inputs: Tensor) -> Tensor:
        """As loralib computes it."""
        return self.base(inputs) + (inputs @ self.down.t() @ self.up.t()) * self.scaling


def _replace_adapters(part: nn.Module) -> None:
    for name, layer in list(part.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, PlainLora(layer))


class Plain:
    """The research code's procedure.

    Args:
        section: The same `model` section that the plugin is given.
        device: Where it runs.
        ours: Whose frozen weights it shares; None has its own.
    """

    def __init__(self, section: dict[str, Any], device: str, ours: nn.Module | None = None) -> None:
        self.model = build({**section, "kernels": "plain"}, device)
        if ours is not None:
            share_frozen(self.model, ours)
        _replace_adapters(self.model.Qformer.bert)
        self.optimizer = optimizer_of(self.model)
        self.mixed = mixed_precision(section, device)

    def train(self, work: Work) -> float:
        """One optimizer step."""
        with self.mixed:
            loss = self.model.train()(work.samples)["loss"]
        return step(self.model, self.optimizer, loss)

    @torch.no_grad()
    def rank(self, work: Work) -> list[int]:
        """One question after the other."""
        self.model.eval()
        questions = zip(work.image, work.prompts, work.candidates, strict=True)
        return [int(self._scores(image[None], prompt, own).argmin()) for image, prompt, own in questions]

    def generate(self, work: Work) -> list[str]:
        """One question after the other."""
        self.model.eval()
        questions = zip(work.image, work.prompts, strict=True)
        return [
            self.model.generate({"image": image[None], "prompt": [prompt]}, **GENERATION)[0]
            for image, prompt in questions
        ]

    def _scores(self, image: Tensor, prompt: str, candidates: list[str]) -> Tensor:
        prefix, mask = self.model.encode_images(image, [prompt])
        scores = self._t5_scores if self.model.family == "t5" else self._llama_scores
        with self.model.maybe_autocast(dtype=torch.bfloat16):
            return scores(prefix, mask, prompt, candidates)

    def _t5_scores(self, prefix: Tensor, mask: Tensor, prompt: str, candidates: list[str]) -> Tensor:
        t5, tokenizer = self.model.t5_model, self.model.t5_tokenizer
        text = tokenizer([prompt], return_tensors="pt").to(prefix.device)
        answers = tokenizer(candidates, padding="longest", return_tensors="pt").to(prefix.device)
        embeds = torch.cat([prefix, t5.get_input_embeddings()(text.input_ids)], dim=1)
        attention = torch.cat([mask, text.attention_mask], dim=1)
        encoded = t5.get_encoder()(inputs_embeds=embeds, attention_mask=attention, return_dict=True)[0]
        targets = answers.input_ids.masked_fill(answers.attention_mask == 0, _IGNORE)
        logits = t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(len(candidates), dim=0)),
            attention_mask=attention.repeat_interleave(len(candidates), dim=0),
            decoder_attention_mask=answers.attention_mask,
            labels=targets,
            return_dict=True,
        ).logits
        return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").sum(dim=1)

    def _llama_scores(self, prefix: Tensor, mask: Tensor, prompt: str, candidates: list[str]) -> Tensor:
        llm, tokenizer = self.model.llm_model, self.model.llm_tokenizer
        tokenizer.padding_side = "right"
        text = tokenizer([prompt], return_tensors="pt").to(prefix.device)
        answers = tokenizer(candidates, padding="longest", return_tensors="pt").to(prefix.device)
        rows, ids = len(candidates), answers.input_ids[:, 1:]
        ids = torch.cat([text.input_ids.expand(rows, -1), ids], dim=1)
        embeds = torch.cat([prefix.expand(rows, -1, -1), llm.get_input_embeddings()(ids)], dim=1)
        parts = [mask.expand(rows, -1), text.attention_mask.expand(rows, -1), answers.attention_mask[:, 1:]]
        logits = llm(inputs_embeds=embeds, attention_mask=torch.cat(parts, dim=1), return_dict=True).logits
        targets = answers.input_ids[:, 1:].masked_fill(answers.attention_mask[:, 1:] == 0, _IGNORE)
        logits = logits[:, -targets.shape[1] - 1 : -1].float()
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(dim=1)


class Single(Plain):
    """Each candidate on its own; only ranking differs from `Plain`."""

    def _scores(self, image: Tensor, prompt: str, candidates: list[str]) -> Tensor:
        return torch.cat([super(Single, self)._scores(image, prompt, [each]) for each in candidates])
