"""InstructBLIP with FLAN-T5 (LAVIS main's ``blip2_t5_instruct``) and adapters.

Shapes as in ``base``; besides, M tokens of a candidate.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lavis_peft.models.base import Blip2InstructPeft
from lavis_peft.models.cache import row_bytes, take_rows
from lavis_peft.models.language import load_tokenizer
from lavis_peft.models.scoring import Candidates, summed_losses
from lavis_peft.paths import plugin_configs_dir

_IGNORE = -100


class Blip2T5InstructPeft(Blip2InstructPeft):
    """Model types: flant5xl, flant5xxl, and tiny for the demo and the tests."""

    arch = "blip2_t5_instruct_peft"
    family = "t5"
    llm_key = "t5_model"
    projection_key = "t5_proj"
    answer_length_penalty = -1.0

    t5_tokenizer: Any
    t5_output_tokenizer: Any

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        name: str(plugin_configs_dir() / "models" / f"blip2_t5_instruct_peft_{name}.yaml")
        for name in ("flant5xl", "flant5xxl", "tiny")
    }

    def adjust_config(self, config: Any) -> Any:
        """InstructBLIP runs FLAN-T5 with the exact GELU, not the tanh form it was trained with."""
        config.dense_act_fn = "gelu"
        return config

    def load_llm_tokenizers(self) -> None:
        """Instructions are cut on the left, targets on the right."""
        source, key = self.tokenizer_source()
        self.t5_tokenizer = load_tokenizer(source, key, fast=True, truncation_side="left")
        self.t5_output_tokenizer = load_tokenizer(source, key, fast=True, truncation_side="right")

    def _encoder_inputs(self, prefix: Tensor, mask: Tensor, tokens: Any) -> tuple[Tensor, Tensor]:
        embeds = self.t5_model.get_input_embeddings()(tokens.input_ids)
        # In float32: under run.amp the prefix comes in fp16, and torch won't join it with bf16.
        embeds = torch.cat([prefix.float(), embeds], dim=1)  # (B, T·Q + L, D)
        return embeds, torch.cat([mask, tokens.attention_mask], dim=1)

    def _targets(self, tokens: Any) -> Tensor:
        return tokens.input_ids.masked_fill(tokens.input_ids == self.t5_tokenizer.pad_token_id, _IGNORE)

    def language_loss(self, prefix: Tensor, mask: Tensor, samples: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the targets' tokens."""
        device = prefix.device
        with self.maybe_autocast(dtype=torch.bfloat16):
            inputs = self.token_cache(self.t5_tokenizer, samples["text_input"], self.max_txt_len).to(device)
            outputs = self.token_cache(self.t5_output_tokenizer, samples["text_output"], self.max_output_txt_len)
            outputs = outputs.to(device)
            embeds, attention = self._encoder_inputs(prefix, mask, inputs)
            return self.t5_model(
                inputs_embeds=embeds,
                attention_mask=attention,
                decoder_attention_mask=outputs.attention_mask,
                labels=self._targets(outputs),
                use_cache=False,
                return_dict=True,
            ).loss

    def language_scores(self, prefix: Tensor, mask: Tensor, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """Scores of all candidates.

        The encoder, the decoder's keys and values of its output, and the start token run once per sample.
        """
        device = prefix.device
        flat = [text for own in candidates for text in own]
        tokens = self.token_cache(self.t5_tokenizer, flat)
        rows = Candidates.of(tokens.input_ids, tokens.attention_mask, [len(own) for own in candidates], device)
        with self.maybe_autocast(dtype=torch.bfloat16):
            inputs = self.token_cache(self.t5_tokenizer, texts).to(device)
            embeds, attention = self._encoder_inputs(prefix, mask, inputs)
            encoded = self.t5_model.get_encoder()(inputs_embeds=embeds, attention_mask=attention, return_dict=True)[0]
            start = self.t5_model.prepare_decoder_input_ids_from_labels(rows.ids.new_zeros(len(texts), 1))
            first = self._decode(encoded, attention, start)
            scores = rows.first_losses(first.logits[:, -1])
            for pack in rows.packs(row_bytes(first.past_key_values), first.logits.shape[-1]):
                past = take_rows(first.past_key_values, pack.owner)
                with self.of_rows(pack.owner):
                    output = self._decode(encoded[pack.owner], attention[pack.owner], pack.ids[:, :-1], past)
                scores[pack.index] += summed_losses(output.logits, pack.targets)
        return scores

    def _decode(self, encoded: Tensor, attention: Tensor, ids: Tensor, past: Any = None) -> Any:
        """Logits (rows, tokens, vocabulary) and cache; padding is behind all that counts, so it needs no mask."""
        return self.t5_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=attention,
            decoder_input_ids=ids,
            past_key_values=past,
            use_cache=True,
            return_dict=True,
        )

    def length_options(self, max_length: int, min_length: int) -> dict[str, int]:
        """T5 counts new tokens; its decoder's start token is part of ``min_length`` only."""
        return {"max_new_tokens": max_length, "min_length": min_length}

    def language_generate(self, prefix: Tensor, mask: Tensor, texts: list[str], options: dict[str, Any]) -> list[str]:
        """Decode with transformers' ``generate``."""
        tokens = self.token_cache(self.t5_tokenizer, texts).to(prefix.device)
        with self.maybe_autocast(dtype=torch.bfloat16):
            embeds, attention = self._encoder_inputs(prefix, mask, tokens)
            outputs = self.t5_model.generate(inputs_embeds=embeds, attention_mask=attention, **options)
        return self.t5_tokenizer.batch_decode(outputs, skip_special_tokens=True)
