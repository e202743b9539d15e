"""The tensors of an adapter in peft's own layout under the names of a part here."""

from torch import Tensor, nn

from lavis_peft.adapters.export import common_name
from lavis_peft.adapters.held import held_names
from lavis_peft.adapters.imported import PartAdapter
from lavis_peft.adapters.method_table import METHODS
from lavis_peft.adapters.triplets import ADAPTER
from lavis_peft.checks import shortened
from lavis_peft.errors import CheckpointError


def part_state(adapter: PartAdapter, module: nn.Module, where: str) -> dict[str, Tensor]:
    """An adapter's tensors under the names of a part that it was put into.

    Args:
        adapter: The adapter.
        module: The part with an adapter of `spec_of` in it; on the meta device it is enough.
        where: The folder, for messages.

    Raises:
        CheckpointError: A tensor has no place in it.
    """
    own, held = module.state_dict(), held_names(module)
    # peft leaves the adapter's name out, and the last name of DoRA's magnitudes too.
    saved = {key.replace(f".{ADAPTER}", ""): key for key in own if f".{ADAPTER}" in key}
    saved |= {key.removesuffix(".weight"): name for key, name in saved.items() if ".lora_magnitude_vector" in key}
    saved |= {key: key for key in own if key.endswith("bias")}
    method = METHODS[str(adapter.config["peft_type"])]
    for shared in method.shared:
        for key in [key for key in held if f".{shared}." in key]:
            layer, _, rest = key.replace(f".{ADAPTER}", "").partition(f".{shared}")
            saved[common_name(f"{adapter.names.get(layer, layer)}.{shared}{rest}", method)] = key
    foreign = [key for key in adapter.tensors if key not in saved]
    if foreign:
        raise CheckpointError(f"{where}: holds what such an adapter doesn't have: {shortened(foreign)}")
    # Some of peft's files have what layers have in common in each of them too.
    return {
        saved[key]: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in adapter.tensors.items()
        if saved[key] in held or key.endswith("bias")
    }
