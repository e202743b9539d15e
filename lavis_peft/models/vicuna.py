"""InstructBLIP with Vicuna (LAVIS main's ``blip2_vicuna_instruct``) and adapters; any causal model of LLaMA's layout.

Shapes as in ``base``; besides, S tokens of instruction and answer together.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.language import as_vicuna_tokenizer, load_tokenizer
from lavis_peft.models.scoring import chunks, owners
from lavis_peft.paths import plugin_configs_dir

_IGNORE = -100


class Blip2VicunaInstructPeft(Blip2InstructPeft):
    """Model types: vicuna7b, vicuna13b, and tiny for the demo and the tests."""

    arch = "blip2_vicuna_instruct_peft"
    family = "llama"
    llm_key = "llm_model"
    projection_key = "llm_proj"
    answer_length_penalty = 0.0

    llm_tokenizer: Any = None

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        name: str(plugin_configs_dir() / "models" / f"blip2_vicuna_instruct_peft_{name}.yaml")
        for name in ("vicuna7b", "vicuna13b", "tiny")
    }

    def load_llm_tokenizers(self) -> None:
        """One tokenizer with InstructBLIP's special tokens."""
        self.llm_tokenizer = as_vicuna_tokenizer(
            load_tokenizer(*self.tokenizer_source(), fast=False, truncation_side="left")
        )

    def adjust_llm(self, llm: nn.Module) -> nn.Module:
        """Make room for the tokens that InstructBLIP adds.

        LAVIS leaves their rows random; zeros make two builds the same, and the tokens are never a target.
        """
        before, size = llm.get_input_embeddings().weight.shape[0], len(self.llm_tokenizer)
        if before != size:
            llm.resize_token_embeddings(size)
            for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
                layer.weight.data[before:] = 0
        return llm

    def shape_config(self, config: Any) -> Any:
        """Count the [PAD] that InstructBLIP adds; without a tokenizer at hand, to LLaMA's own vocabulary."""
        config.vocab_size = config.vocab_size + 1 if self.llm_tokenizer is None else len(self.llm_tokenizer)
        return config

    def _tokens(self, texts: list[str], device: torch.device, *, side: str, cut: str, most: int | None) -> Any:
        tokenizer = self.llm_tokenizer
        tokenizer.padding_side, tokenizer.truncation_side = side, cut
        limit = {"truncation": True, "max_length": most} if most else {}
        return tokenizer(texts, padding="longest", return_tensors="pt", **limit).to(device)

    def _joined(self, inputs: Any, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Put each answer right behind its instruction, padding last; the answer's own bos is dropped.

        Returns:
            Token ids (rows, S), attention mask (rows, S), and targets (rows, S) that count only the answer.
        """
        answer_ids, answer_mask = outputs.input_ids[:, 1:], outputs.attention_mask[:, 1:]
        ids = torch.cat([inputs.input_ids, answer_ids], dim=1)
        mask = torch.cat([inputs.attention_mask, answer_mask], dim=1)
        kind = torch.cat([torch.zeros_like(inputs.input_ids), torch.ones_like(answer_ids)], dim=1)
        # A stable sort by "is padding" keeps the order of what remains: instruction, answer, then all the padding.
        order = torch.argsort(1 - mask, dim=1, stable=True)
        ids, mask, kind = (values.gather(1, order) for values in (ids, mask, kind))
        targets = ids.masked_fill((kind == 0) | (ids == self.llm_tokenizer.pad_token_id), _IGNORE)
        return ids, mask, targets

    def _embedded(self, prefix: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor) -> tuple[Tensor, Tensor]:
        embeds = self.llm_model.get_input_embeddings()(ids)
        embeds = torch.cat([prefix.float(), embeds], dim=1)  # (rows, T·Q + S, D); in float32 for the reason t5.py gives
        return embeds, torch.cat([mask, ids_mask], dim=1)

    def _token_losses(self, prefix: Tensor, mask: Tensor, inputs: Any, outputs: Any) -> tuple[Tensor, Tensor]:
        """Loss of every token of the answers, zero elsewhere, and the targets, both (rows, S)."""
        ids, ids_mask, targets = self._joined(inputs, outputs)
        embeds, attention = self._embedded(prefix, mask, ids, ids_mask)
        logits = self.llm_model(inputs_embeds=embeds, attention_mask=attention, return_dict=True).logits
        # The token at position i is predicted at i − 1; the first token of the text is predicted by the last query.
        logits = logits[:, prefix.shape[1] - 1 : -1].float()  # (rows, S, vocabulary)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORE, reduction="none")
        return losses, targets

    def language_loss(self, prefix: Tensor, mask: Tensor, samples: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the targets' tokens, the closing ``</s>`` among them."""
        device = prefix.device
        inputs = self._tokens(samples["text_input"], device, side="right", cut="left", most=self.max_txt_len)
        ended = [text + self.llm_tokenizer.eos_token for text in samples["text_output"]]
        outputs = self._tokens(ended, device, side="right", cut="right", most=self.max_output_txt_len)
        with self.maybe_autocast():
            losses, targets = self._token_losses(prefix, mask, inputs, outputs)
        return losses.sum() / (targets != _IGNORE).sum()

    def language_scores(self, prefix: Tensor, mask: Tensor, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """Scores of all candidates, without a closing ``</s>``, as LAVIS ranks."""
        device = prefix.device
        inputs = self._tokens(texts, device, side="right", cut="left", most=None)
        flat = [text for own in candidates for text in own]
        outputs = self._tokens(flat, device, side="right", cut="right", most=None)
        owner = owners(candidates, device)
        scores = []
        with self.maybe_autocast(dtype=torch.bfloat16):
            for rows in chunks(len(flat)):
                own = owner[rows]
                with self.of_rows(own):
                    losses, _ = self._token_losses(prefix[own], mask[own], _rows(inputs, own), _rows(outputs, rows))
                scores.append(losses.sum(dim=1))
        return torch.cat(scores)

    def length_options(self, max_length: int, min_length: int) -> dict[str, int]:
        """The ``generate`` that LAVIS main runs on (transformers 4.33) counts an opening token with the answer."""
        return {"max_new_tokens": max(max_length - 1, 1), "min_new_tokens": max(min_length - 1, 0)}

    def language_generate(self, prefix: Tensor, mask: Tensor, texts: list[str], options: dict[str, Any]) -> list[str]:
        """Decode with transformers' ``generate``; padding is on the left of the instruction, after the queries."""
        tokens = self._tokens(texts, prefix.device, side="left", cut="left", most=None)
        with self.maybe_autocast():
            embeds, attention = self._embedded(prefix, mask, tokens.input_ids, tokens.attention_mask)
            outputs = self.llm_model.generate(inputs_embeds=embeds, attention_mask=attention, **options)
        outputs[outputs == 0] = self.llm_tokenizer.eos_token_id  # <unk> as the end, as LAVIS decodes
        return [text.strip() for text in self.llm_tokenizer.batch_decode(outputs, skip_special_tokens=True)]


class _Rows:
    """Token ids and mask of some rows of a tokenizer's output."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask


def _rows(tokens: Any, index: Tensor | slice) -> _Rows:
    return _Rows(tokens.input_ids[index], tokens.attention_mask[index])
