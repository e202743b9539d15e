"""Fused attention in LAVIS's vision encoder and Q-Former.

Their layers compute scores, softmax and weighted sum in steps of their own. Here the layers' classes are exchanged for
subclasses that do the three by torch's ``scaled_dot_product_attention``; names, weights and everything else stay. What
the fused form can't do (attention maps, head masks, relative positions) falls back to LAVIS's forward.

Shapes: B rows, N tokens, K keys, Q queries, C width, H heads.
"""

from typing import Any

import torch
from lavis.models.blip2_models.Qformer import BertLayer, BertSelfAttention
from lavis.models.eva_vit import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_peft.models.linear import linear


def fuse_vision(encoder: nn.Module) -> None:
    """Exchange the attention of every block of LAVIS's EVA ViT."""
    for block in encoder.blocks:
        block.attn.__class__ = FusedVisionAttention


def fuse_qformer(bert: nn.Module) -> None:
    """Exchange every attention of LAVIS's Q-Former, and its last layer for one that computes the queries only.

    Nothing reads what the last layer makes of the text, so its feed-forward branch for text isn't run. The adapters in
    there get the zeros for gradients that they got before: all processes of a distributed run, and AdaLoRA, expect one.
    """
    for layer in bert.encoder.layer:
        for part in ("attention", "crossattention"):
            if hasattr(layer, part):
                getattr(layer, part).self.__class__ = FusedBertAttention
    bert.encoder.layer[-1].__class__ = QueriesOnlyLayer


class FusedVisionAttention(Attention):
    """LAVIS's attention of a ViT block, fused."""

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if rel_pos_bias is not None or self.relative_position_bias_table is not None:
            return super().forward(x, rel_pos_bias)
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, H, C / H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = attend(query, key, value, dropout=dropout, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class FusedBertAttention(BertSelfAttention):
    """LAVIS's self- or cross-attention of a Q-Former layer, fused."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """As LAVIS's; the masks are added to the scores."""
        if _only_plain(self, head_mask, past_key_value, output_attentions):
            return super().forward(
                hidden_states,
                attention_mask,
                head_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_value,
                output_attentions,
            )
        crossed = encoder_hidden_states is not None
        read, mask = (encoder_hidden_states, encoder_attention_mask) if crossed else (hidden_states, attention_mask)
        query, key, value = (
            self.transpose_for_scores(layer(states))  # (B, H, N or K, C / H)
            for layer, states in ((self.query, hidden_states), (self.key, read), (self.value, read))
        )
        return (_attend(self, query, key, value, mask), (key, value))


def _only_plain(layer: Any, head_mask: Tensor | None, past_key_value: Any, output_attentions: bool) -> bool:
    """Whether a Q-Former's attention is asked for what only LAVIS's own steps give."""
    mapped = output_attentions or getattr(layer, "save_attention", False)  # the latter by LAVIS's visualisation
    relative = layer.position_embedding_type != "absolute"
    return bool(relative or head_mask is not None or past_key_value is not None or mapped)


def _attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Fused attention of (B, H, N, C / H) over K keys, heads joined again: (B, N, C)."""
    dropout = layer.dropout.p if layer.training else 0.0
    if mask is not None:
        mask = mask.to(query.dtype)
    mixed = attend(query, key, value, mask, dropout, query.shape[-1] ** -0.5)
    return mixed.transpose(1, 2).flatten(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Attention of (B, H, N, C / H) over (B, H, K, C / H), in the quickest form for its place and precision.

    Args:
        mask: Added to the scores, broadcast to (B, H, N, K).
        dropout: Share of the weights that are dropped.
        scale: The scores' factor.
    """
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    # torch's fused form for the CPU takes more than twice the time of its own products in half precision.
    scores = (query * scale) @ key.transpose(-2, -1)  # (B, H, N, K)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value


class _ZeroGradients(torch.autograd.Function):
    """Passes a tensor on, and gives zeros as gradients to parameters that it doesn't depend on."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


class QueriesOnlyLayer(BertLayer):
    """A Q-Former layer whose text output nothing reads."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        query_length: int = 0,
    ) -> tuple[Any, ...]:
        """(B, Q + L, C) to (B, Q, C)."""
        own = self.attention.self
        plain = _only_plain(own, head_mask, past_key_value, output_attentions)
        if plain or not 0 < query_length < hidden_states.shape[1]:
            return super().forward(
                hidden_states,
                attention_mask,
                head_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_value,
                output_attentions,
                query_length,
            )
        queries = hidden_states[:, :query_length]
        query, key, value = (
            own.transpose_for_scores(layer(states))
            for layer, states in ((own.query, queries), (own.key, hidden_states), (own.value, hidden_states))
        )
        output = self.attention.output(_attend(own, query, key, value, attention_mask), queries)
        if self.has_cross_attention:
            output = self.crossattention(
                output, None, None, encoder_hidden_states, encoder_attention_mask, None, False
            )[0]
        output = self.feed_forward_chunk_query(output)
        return (self._with_unused(output), (key, value))

    def _with_unused(self, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        text = (*self.intermediate.parameters(), *self.output.parameters())
        unused = [parameter for parameter in text if parameter.requires_grad]
        return _ZeroGradients.apply(output, *unused) if unused else output
