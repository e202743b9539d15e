"""peft's ADAMSS with sizes from the checkpoint: its matrices are as large as the groups that a weight's rows fall into.

peft groups the rows anew whenever it makes a layer, by k-means over singular vectors. Another machine or another
scikit-learn may group them otherwise, and what was trained would be added to other rows without a word. Here the rows'
order is part of the state dict, and a checkpoint's is taken over with the sizes of its groups.

Shapes: o outputs, i inputs of a layer (one more where it has a bias), r singular vectors, n rows of a subspace, k its
rank.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.adamss.layer import Linear
from peft.tuners.adamss.model import AdamssModel
from torch import Tensor, nn

from lavis_peft.errors import CheckpointError


class SubspaceLayer(Linear):
    """peft's layer, which holds what it was grouped by, and can be made without grouping anything."""

    #: Each adapter's order of the rows, group after group: peft's name, and here a part of the state dict.
    scatter_index: Any
    #: Each adapter's least and greatest rank of a subspace that has rows enough.
    ranks: dict[str, tuple[int, int]]

    def update_layer(self, adapter_name: str, r: int, config: Any, **kwargs: Any) -> None:
        """Add an adapter: groups as peft makes them, or placeholders of equal sizes where a checkpoint follows.

        Raises:
            ValueError: The settings don't fit the layer.
        """
        weight = self.get_base_layer().weight
        outputs, inputs = self.out_features, self.in_features + (self.get_base_layer().bias is not None)
        r = min(r, outputs, inputs)
        if config.subspace_rank > r:  # peft's matrices wouldn't fit one another
            raise ValueError(f"`subspace_rank` is {config.subspace_rank}, and there are {r} singular vectors at most")
        if not weight.is_floating_point():
            raise ValueError("the rows of a quantized weight can't be grouped")
        if not isinstance(self.scatter_index, BufferDict):
            self.scatter_index, self.ranks = BufferDict(persistent=True), {}
        self.ranks[adapter_name] = (1 if config.use_dynamic_rank else config.subspace_rank, config.subspace_rank)
        if config.init_weights and not weight.is_meta:
            super().update_layer(adapter_name, r, config, **kwargs)
            return
        zeros = partial(torch.zeros, dtype=weight.dtype, device=weight.device)
        groups = min(config.num_subspaces, outputs)
        sizes = [len(range(number, outputs, groups)) for number in range(groups)]
        self.num_subspaces[adapter_name] = groups
        self.scatter_index[adapter_name] = torch.arange(outputs, device=weight.device)
        self.adamss_newB[adapter_name] = zeros(r, inputs)
        self.adamss_A[adapter_name] = nn.ParameterList(zeros(min(n, config.subspace_rank), r) for n in sizes)  # (k, r)
        self.adamss_B[adapter_name] = nn.ParameterList(zeros(n, min(n, config.subspace_rank)) for n in sizes)  # (n, k)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's, in the precision that the base has now: a copy in float32 is what is merged and compared."""
        self.dtype = self.get_base_layer().weight.dtype
        return super().forward(x, *args, **kwargs)

    def shapes_in(self, state: Mapping[str, Any], prefix: str) -> dict[str, torch.Size]:
        """The shapes that the layer's matrices must have to hold those of a state dict.

        Args:
            state: A state dict; adapters that aren't whole in it are passed over.
            prefix: What the layer's names begin with in it.

        Returns:
            The matrices' names below the layer -> their shapes.

        Raises:
            CheckpointError: The groups in it aren't a split of the layer's rows.
        """
        shapes: dict[str, torch.Size] = {}
        for adapter, (least, most) in self.ranks.items():
            own = [f"adamss_B.{adapter}.{number}" for number in range(self.num_subspaces[adapter])]
            found: list[Any] = [state.get(prefix + key) for key in own]
            order: Any = state.get(f"{prefix}scatter_index.{adapter}")
            if not all(isinstance(each, Tensor) for each in (*found, order)) or any(each.dim() != 2 for each in found):
                continue
            sizes = [len(each) for each in found]
            if sum(sizes) != self.out_features:
                raise CheckpointError(
                    f"{prefix}adamss_B.{adapter}: subspaces of {' + '.join(map(str, sizes))} rows; the layer has "
                    f"{self.out_features}"
                )
            rows = torch.arange(self.out_features, device="cpu")
            if order.dtype != rows.dtype or not torch.equal(order.cpu().sort().values, rows):
                raise CheckpointError(
                    f"{prefix}scatter_index.{adapter}: isn't an order of the layer's rows; each whole number from 0 to "
                    f"{self.out_features - 1} must be there once"
                )
            for number, (n, matrix) in enumerate(zip(sizes, found, strict=True)):
                rank = min(max(matrix.shape[1], least), most, n)
                shapes[f"adamss_A.{adapter}.{number}"] = torch.Size((rank, len(self.adamss_newB[adapter])))
                shapes[own[number]] = torch.Size((n, rank))
        return shapes

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for key, shape in self.shapes_in(state_dict, prefix).items():
            parameter = self.get_parameter(key)
            if parameter.shape != shape:
                parameter.data = parameter.data.new_zeros(shape)  # still the parameter that an optimizer may know
        # Past peft's own, which takes matrices of any shape and leaves the rows as they were.
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


class SubspaceModel(AdamssModel):
    """peft's tuner with the layers above."""

    def _create_new_module(self, adamss_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        return SubspaceLayer(target, adapter_name, r=adamss_config.r, config=adamss_config, **kwargs)
