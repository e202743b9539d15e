"""Tensors that a model takes over are its own: in its precision, and sharing memory with nothing."""

import torch

from lavis_peft.adapters.checkpoint import load_base
from lavis_peft.adapters.placing import taken_over


def test_a_tensor_that_fits_is_taken_as_it_is_and_let_go_of() -> None:
    fits, other = torch.ones(4), torch.ones(4, dtype=torch.float16)
    state = {"fits": fits, "other": other}
    taken = taken_over(state, {"fits": torch.zeros(4), "other": torch.zeros(4)})
    assert taken["fits"].data_ptr() == fits.data_ptr()
    assert taken["other"].dtype == torch.float32 and taken["other"].tolist() == [1.0] * 4
    assert state == {}


def test_memory_is_not_shared() -> None:
    whole = torch.arange(6.0)
    state = {"first": whole[:3], "second": whole[3:], "once": torch.ones(3)}
    state["again"] = state["once"]
    taken = taken_over(state, {key: torch.zeros(3) for key in state})
    storages = [tensor.untyped_storage() for tensor in taken.values()]
    assert len({storage.data_ptr() for storage in storages}) == 4
    assert [storage.nbytes() for storage in storages] == [12] * 4
    assert taken["second"].tolist() == [3.0, 4.0, 5.0]


def test_base_weights_are_copied_into_a_module_that_has_memory_and_put_into_one_that_has_none() -> None:
    read = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    module = torch.nn.Linear(3, 2)
    before = list(module.parameters())
    load_base(module, read)
    assert all(now is then for now, then in zip(module.parameters(), before, strict=True))
    assert module.weight.data_ptr() != read["weight"].data_ptr() and module.weight.min() == 1
    with torch.device("meta"):
        empty = torch.nn.Linear(3, 2)
    load_base(empty, read)
    assert empty.weight.data_ptr() == read["weight"].data_ptr()
