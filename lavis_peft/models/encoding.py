"""From pictures and instructions to the visual prefix that the language model reads.

Shapes as in ``base``.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.models.switching import Switching
from lavis_peft.models.tokens import TokenCache


class Encoding(Switching):
    """Mixed into the base model."""

    #: The Q-Former's tokenizer; None where only shapes are built.
    tokenizer: Any
    token_cache: TokenCache
    max_txt_len: int
    device: torch.device
    visual_encoder: Any
    Qformer: Any
    llm: nn.Module

    #: What every autocast computes in; None leaves it to LAVIS's choice in each place.
    _autocast_dtype: torch.dtype | None = None

    def autocast_to(self, dtype: torch.dtype | None) -> None:
        """Let every autocast of the model compute in one number format, on a CPU too; None: as LAVIS."""
        self._autocast_dtype = dtype

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> contextlib.AbstractContextManager:
        """LAVIS's autocast on a GPU; on a CPU only where weights are held in half precision, or `autocast_to` asks."""
        device = self.device.type
        if device != "cpu" or self._autocast_dtype is not None:
            return torch.autocast(device, dtype=self._autocast_dtype or dtype)
        # By the weights, not by the YAML: LAVIS's load_model_and_preprocess casts a model for a CPU to float32.
        weights = (next(self.llm.parameters()), self.visual_encoder.blocks[0].attn.qkv.weight)
        half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights)
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()

    def encode_images(self, image: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Visual prefix for the language model.

        Args:
            image: (B, 3, H, W), or (B, 3, T, H, W) for video, whose frames are encoded one by one.
            texts: The instruction of each sample, which the Q-Former reads.

        Returns:
            Embeddings (B, T·Q, D) and their attention mask (B, T·Q).
        """
        tokens = self.token_cache(self.tokenizer, texts, self.max_txt_len).to(image.device)
        frames = image.unbind(dim=2) if image.dim() == 5 else [image]
        prefix = torch.cat([self._encode_frame(frame, tokens) for frame in frames], dim=1)
        return prefix, torch.ones(prefix.shape[:2], dtype=torch.long, device=image.device)

    def _encode_frame(self, frame: Tensor, tokens: Any) -> Tensor:
        with self.maybe_autocast():
            with torch.no_grad():  # frozen, and at the beginning: nothing of it is kept for a backward pass
                features = self.visual_encoder(frame)
            features = self.normed(features)  # (B, P, width of the vision encoder)
        ones = torch.ones(features.shape[:2], dtype=torch.long, device=frame.device)
        queries = self.queries(frame.shape[0])  # (B, Q, width of the Q-Former)
        query_mask = torch.ones(queries.shape[:2], dtype=torch.long, device=frame.device)
        output = self.Qformer.bert(
            tokens.input_ids,
            attention_mask=torch.cat([query_mask, tokens.attention_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=features,
            encoder_attention_mask=ones,
            return_dict=True,
        )
        return self.projected(output.last_hidden_state[:, : queries.shape[1]])  # (B, Q, D)
