"""InstructBLIP with Vicuna (LAVIS main's ``blip2_vicuna_instruct``) and adapters; any causal model of LLaMA's layout.

Shapes as in ``base``; besides, S tokens of instruction and answer together.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.cache import row_bytes, take_rows
from lavis_peft.models.head import only
from lavis_peft.models.language import as_vicuna_tokenizer, load_tokenizer
from lavis_peft.models.scoring import Candidates, summed_losses
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
        return self.token_cache(tokenizer, texts, most).to(device)

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

    def language_loss(self, prefix: Tensor, mask: Tensor, samples: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the targets' tokens, the closing ``</s>`` among them."""
        device = prefix.device
        inputs = self._tokens(samples["text_input"], device, side="right", cut="left", most=self.max_txt_len)
        ended = [text + self.llm_tokenizer.eos_token for text in samples["text_output"]]
        outputs = self._tokens(ended, device, side="right", cut="right", most=self.max_output_txt_len)
        ids, ids_mask, targets = self._joined(inputs, outputs)
        # The token at position i is predicted at i − 1; the first token of the text is predicted by the last query.
        first, counted = prefix.shape[1] - 1, targets != _IGNORE
        with self.maybe_autocast():
            embeds, attention = self._embedded(prefix, mask, ids, ids_mask)
            # Of the vocabulary's width, only what the loss reads is computed: (counted tokens, vocabulary).
            with only(self.llm_model.get_output_embeddings(), lambda hidden: hidden[:, first:-1][counted]):
                logits = self.llm_model(
                    inputs_embeds=embeds, attention_mask=attention, use_cache=False, return_dict=True
                ).logits
            return F.cross_entropy(logits.float(), targets[counted])

    def language_scores(self, prefix: Tensor, mask: Tensor, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """Scores of all candidates, without a closing ``</s>``, as LAVIS ranks.

        Queries and instruction run once per sample; candidates go on from their keys and values.
        """
        device = prefix.device
        inputs = self._tokens(texts, device, side="right", cut="left", most=None)
        flat = [text for own in candidates for text in own]
        tokens = self._tokens(flat, torch.device("cpu"), side="right", cut="right", most=None)
        ids, ids_mask = tokens.input_ids[:, 1:], tokens.attention_mask[:, 1:]  # without the answer's own bos
        rows = Candidates.of(ids, ids_mask, [len(own) for own in candidates], device)
        head = self.llm_model.get_output_embeddings()
        with self.maybe_autocast(dtype=torch.bfloat16):
            embeds, attention = self._embedded(prefix, mask, inputs.input_ids, inputs.attention_mask)
            length = attention.sum(dim=1)  # (B,)
            sample = torch.arange(len(texts), device=device)
            with only(head, lambda hidden: hidden[sample, length - 1]):
                first = self.llm_model(inputs_embeds=embeds, attention_mask=attention, use_cache=True, return_dict=True)
            scores = rows.first_losses(first.logits)
            for pack in rows.packs(row_bytes(first.past_key_values), first.logits.shape[-1]):
                ids = pack.ids[:, :-1]
                # Behind the instruction's padding in the cache, but right behind the instruction by position.
                positions = length[pack.owner, None] + torch.arange(ids.shape[1], device=device)
                with self.of_rows(pack.owner):
                    output = self.llm_model(
                        # As the instruction's: in their own half precision autocast might join it with another.
                        inputs_embeds=self.llm_model.get_input_embeddings()(ids).float(),
                        attention_mask=torch.cat([attention[pack.owner], torch.ones_like(ids)], dim=1),
                        position_ids=positions,
                        past_key_values=take_rows(first.past_key_values, pack.owner),
                        use_cache=True,
                        return_dict=True,
                    )
                scores[pack.index] += summed_losses(output.logits, pack.targets)
        return scores

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
