"""From pictures and instructions to the visual prefix that the language model reads.

Shapes as in ``base``.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from lavis_peft.errors import ConfigError
from lavis_peft.models.parking import fetch
from lavis_peft.models.spec import ModelSpec
from lavis_peft.models.switching import Switching
from lavis_peft.models.tokens import TokenCache


class Encoding(Switching):
    """Mixed into the base model."""

    spec: ModelSpec
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
        lower = self.autocast_dtype(dtype)
        return contextlib.nullcontext() if lower is None else torch.autocast(self.device.type, dtype=lower)

    def autocast_dtype(self, dtype: torch.dtype = torch.float16) -> torch.dtype | None:
        """What `maybe_autocast` computes in; None where it does nothing."""
        if self.device.type != "cpu" or self._autocast_dtype is not None:
            return self._autocast_dtype or dtype
        # By the weights, not by the YAML: LAVIS's load_model_and_preprocess casts a model for a CPU to float32.
        weights = (next(self.llm.parameters()), self.visual_encoder.blocks[0].attn.qkv.weight)
        half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights)
        return torch.bfloat16 if half else None

    def encode_images(self, image: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Visual prefix for the language model.

        Args:
            image: (B, 3, H, W); (B, 3, T, H, W) for video, whose frames are encoded one by one; or (B, P, width), what
                `encode_vision` made of pictures before, in any precision.
            texts: The instruction of each sample, which the Q-Former reads.

        Returns:
            Embeddings (B, T·Q, D) and their attention mask (B, T·Q).
        """
        tokens = self.token_cache(self.tokenizer, texts, self.max_txt_len).to(image.device)
        frames = image.unbind(dim=2) if image.dim() == 5 else [image]
        prefix = torch.cat([self._encode_frame(frame, tokens) for frame in frames], dim=1)
        return prefix, torch.ones(prefix.shape[:2], dtype=torch.long, device=image.device)

    @torch.no_grad()  # frozen, and at the beginning: nothing of it is kept for a backward pass
    def encode_vision(self, pictures: Tensor) -> Tensor:
        """The vision encoder's output for pictures (B, 3, H, W): (B, P, width), float32.

        Raises:
            ConfigError: They aren't of the model's size.
        """
        height, width = pictures.shape[-2:]
        if {height, width} != {self.spec.image_size}:
            raise ConfigError(
                f"model.image_size: {self.spec.image_size}, but the vis_processor gives pictures of {height} × {width} "
                "pixels; give its image_size the same number"
            )
        fetch(self.visual_encoder, self.device)
        with self.maybe_autocast():
            return self.visual_encoder(pictures)

    def _encode_frame(self, frame: Tensor, tokens: Any) -> Tensor:
        # The encoder's residual stream is in float32, whatever its layers compute in.
        features = frame.float() if frame.dim() == 3 else self.encode_vision(frame)
        with self.maybe_autocast():
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
