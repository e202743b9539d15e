"""peft's FROD with all that it is made of in the model, and computed as a change of the base.

A layer's weight is U (S + diag(l)) Vᵀ. V and the places of S's numbers are common to the layers of a kind; l and these
numbers are trained; U follows from V and the base weight. peft puts the product in the base weight's place. Here what
has changed of it is added to what the base computes: the same but for rounding, and training starts from the base to
the bit. In bfloat16 peft's start is 1.3 to 3 times as far from it as bfloat16 alone makes it.

Shapes: i inputs and o outputs of a layer, R rows, n numbers in S.
"""

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.frod.layer import Linear
from peft.tuners.frod.model import FrodModel, _category_from_key
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_peft.errors import CheckpointError

_COMMON = ("frod_V", "frod_s_indices", "frod_s_size")


class FrodLinear(Linear):
    """peft's layer; U is no part of its state and computed when it is first needed."""

    def update_layer(
        self, adapter_name: str, frod_V: BufferDict, frod_s_indices: BufferDict, frod_s_size: BufferDict, config: Any
    ) -> None:
        """Put an adapter in, all of it in float32; peft calls it."""
        weight = self.get_base_layer().weight
        # peft keeps these outside of the model, where neither a checkpoint nor a move to a GPU reaches them.
        self.frod_V, self.frod_s_indices, self.frod_s_size = frod_V, frod_s_indices, frod_s_size
        for name in _COMMON:
            getattr(self, name)[adapter_name] = getattr(self, name)[adapter_name].to(weight.device)
        self.frod_dropout[adapter_name] = nn.Dropout(config.frod_dropout) if config.frod_dropout else nn.Identity()
        values = weight.new_zeros(frod_s_indices[adapter_name].shape[1], dtype=torch.float32)
        start = weight.new_zeros(self.in_features, dtype=torch.float32)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        if config.init_weights and not weight.is_meta:
            start = self._factored(adapter_name)[1].clone()
        self.frod_lambda_s_values[adapter_name], self.frod_lambda_l[adapter_name] = map(nn.Parameter, (values, start))
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, i) to (…, o)."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        for name in self.active_adapters:
            if name in self.frod_lambda_l:
                # V's numbers may be great: in half precision, they would overflow or drown what was learned.
                with torch.autocast(x.device.type, enabled=False):
                    u, sparse, moved = self._parts(name)
                    rows = self.frod_dropout[name](x.float()).flatten(end_dim=-2) @ self.frod_V[name]  # (R, i)
                    change = F.linear(torch.sparse.mm(sparse, rows.T).T + rows * moved, u)  # (R, o)
                result = result + change.view_as(result).to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the base weight, (o, i)."""
        self._get_base_weight_before_merge()  # peft unmerges by it
        u, sparse, moved = self._parts(adapter)
        return u @ (sparse.to_dense() + torch.diag(moved)) @ self.frod_V[adapter].T

    def _parts(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """U (o, i), S (i, i) as a sparse matrix, and how far l is from where it gives the base weight, (i,)."""
        u, start = self._factored(name)  # which has looked at the indices
        indices, values = self.frod_s_indices[name], self.frod_lambda_s_values[name]  # (2, n) and (n,)
        sparse = torch.sparse_coo_tensor(indices, values, (self.in_features,) * 2, check_invariants=False)
        return u, sparse.coalesce(), self.frod_lambda_l[name] - start

    @torch.inference_mode(False)  # training may follow on an evaluation
    def _factored(self, name: str) -> tuple[Tensor, Tensor]:
        """U (o, i), and the l (i,) that gives the base weight with it."""
        weight, basis = self.get_base_layer().weight, self.frod_V[name]
        if name not in self._factors:
            places = self.frod_s_indices[name]
            # From a file, maybe; torch looks at no index of a sparse matrix, and would write into foreign memory.
            if not torch.isfinite(basis).all() or (places < 0).any() or (places >= self.in_features).any():
                raise CheckpointError("FROD's basis V isn't finite, or places of its matrix S are outside of it")
            self._factors[name] = self._calculate_frod_u_and_lambda(basis, weight)
        u, start = self._factors[name]
        if u.device != weight.device:
            self._factors[name] = u.to(weight.device), start.to(weight.device)
        return self._factors[name]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._factors.clear()  # another V comes, maybe with another layer's tensors


class Frod(FrodModel):
    """peft's tuner, which computes V where nothing else gives it: on real weights, with no checkpoint to follow."""

    def _init_frod_projections(self, config: Any, adapter_name: str) -> None:
        layers = {
            name: layer for name, layer in self.model.named_modules() if self._check_target_module_exists(config, name)
        }
        if config.init_weights and not any(layer.weight.is_meta for layer in layers.values()):
            super()._init_frod_projections(config, adapter_name)
            return
        for name in _COMMON:
            setattr(self, name, nn.ModuleDict())
        for name, layer in layers.items():
            width = layer.in_features
            count = min(max(1, int(width * width * config.sparse_rate)), width * width - width)  # as peft has it
            shapes = (width, width), (2, count), (2,)
            for common, shape in zip(_COMMON, shapes, strict=True):
                kind = layer.weight.dtype if common == "frod_V" else torch.long
                empty = {adapter_name: layer.weight.new_zeros(shape, dtype=kind)}
                getattr(self, common)[_category_from_key(name)] = BufferDict(empty, persistent=True)

    @staticmethod
    def _create_new_module(
        config: Any, basis: Any, indices: Any, size: Any, name: str, target: Any, **keys: Any
    ) -> FrodLinear:
        return FrodLinear(target, basis, indices, size, name, config=config, **keys)
