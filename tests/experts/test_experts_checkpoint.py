"""Weights as bytes and as flat vectors."""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import (
    MAX_HEADER_BYTES,
    flat_parameters,
    load_flat,
    load_tensors,
    load_weights,
    tensors_from_bytes,
    tensors_to_bytes,
    unflatten,
    weights_to_array,
    weights_to_bytes,
    with_parameters,
)
from experts.errors import CorruptWeights, ShapeMismatch

ARCHITECTURE = MlpArchitecture(feature_dim=5, hidden=3, num_classes=2)
WEIGHTS = weights_to_bytes(ARCHITECTURE.build("teacher"))


def test_loaded_weights_are_the_saved_ones_bit_for_bit() -> None:
    module = ARCHITECTURE.build("other")
    load_weights(module, WEIGHTS)
    assert torch.equal(flat_parameters(module), flat_parameters(ARCHITECTURE.build("teacher")))
    assert weights_to_bytes(module) == WEIGHTS


def test_a_copy_with_other_parameters_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    before, vector = flat_parameters(module), torch.arange(12, dtype=torch.float32)
    copied = with_parameters(module, vector)
    assert torch.equal(flat_parameters(copied), vector)
    assert torch.equal(flat_parameters(module), before)
    assert [own.requires_grad for own in copied.parameters()] == [own.requires_grad for own in module.parameters()]
    vector[0] = 7.0
    assert flat_parameters(copied)[0] == 7.0  # no second copy of the parameters
    assert copied[1].running_mean is not module[1].running_mean
    with pytest.raises(ShapeMismatch):
        with_parameters(module, vector[1:])


def test_loading_keeps_the_parameters_that_an_optimizer_holds() -> None:
    module = ARCHITECTURE.build("other")
    held = list(module.parameters())
    load_weights(module, WEIGHTS)
    assert all(mine is theirs for mine, theirs in zip(module.parameters(), held, strict=True))


def test_bytes_do_not_depend_on_the_order_of_names_or_of_config_keys() -> None:
    one, two = torch.ones(2), torch.zeros(1, 3)
    first = tensors_to_bytes({"a": one, "b": two}, {"x": 1, "y": [2]})
    assert first == tensors_to_bytes({"b": two, "a": one}, {"y": [2], "x": 1})
    tensors, config = tensors_from_bytes(first)
    assert config == {"x": 1, "y": [2]}
    assert torch.equal(tensors["b"], two)


def state(**changes: torch.Tensor | None) -> bytes:
    tensors = {name: value.clone() for name, value in ARCHITECTURE.build("x").state_dict().items()}
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    return save(tensors)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        WEIGHTS[:-1],
        WEIGHTS + b"x",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (MAX_HEADER_BYTES + 1),
        (2**63).to_bytes(8, "little") + b"{}",
        (40_000).to_bytes(8, "little") + b"[" * 40_000,
        state(output__bias=None),
        state(extra=torch.zeros(1)),
        state(output__bias=torch.zeros(3)),
        state(output__bias=torch.zeros(2, dtype=torch.float64)),
        state(output__bias=torch.zeros(2, dtype=torch.bfloat16)),
        state(output__bias=torch.tensor([0.0, float("nan")])),
        state(output__bias=torch.tensor([float("inf"), 0.0])),
    ],
)
def test_foreign_bytes_are_refused_and_change_nothing(data: bytes) -> None:
    module = ARCHITECTURE.build("x")
    before = flat_parameters(module)
    with pytest.raises(CorruptWeights):
        load_weights(module, data)
    assert torch.equal(flat_parameters(module), before)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(0, len(WEIGHTS) - 1), st.binary(min_size=1, max_size=12))
def test_damaged_bytes_load_or_are_refused_but_raise_nothing_else(at: int, damage: bytes) -> None:
    with contextlib.suppress(CorruptWeights):
        load_weights(ARCHITECTURE.build("x"), WEIGHTS[:at] + damage + WEIGHTS[at + len(damage) :])


@pytest.mark.parametrize("text", ["[]", "1", "{", "[" * 2_000])
def test_a_config_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(CorruptWeights):
        tensors_from_bytes(save({"a": torch.ones(1)}, metadata={"modulemesh": text}))


def test_a_config_is_read_from_the_header_only() -> None:
    assert tensors_from_bytes(save({"a": torch.ones(1)}, metadata={"other": json.dumps({"x": 1})}))[1] == {}


def test_weights_nobody_could_load_are_not_written() -> None:
    module = ARCHITECTURE.build("x")
    with torch.no_grad():
        next(module.parameters())[0, 0] = float("nan")
    with pytest.raises(CorruptWeights):
        weights_to_bytes(module)


def test_a_module_without_memory_gets_it_only_for_tensors_that_fit() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    with pytest.raises(CorruptWeights):
        load_tensors(module, {"weight": torch.ones(2, 3), "bias": torch.ones(3)})
    assert module.weight.is_meta
    load_tensors(module, {"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    assert module(torch.ones(1, 2)).tolist() == [[3.0, 3.0, 3.0]]


def test_a_flat_vector_holds_parameters_in_the_order_of_their_names() -> None:
    module = nn.ModuleDict({"b": nn.Linear(1, 1, bias=False), "a": nn.Linear(2, 1, bias=False)})
    with torch.no_grad():
        module["b"].weight.fill_(3.0)
        module["a"].weight.copy_(torch.tensor([[1.0, 2.0]]))
    assert flat_parameters(module).tolist() == [1.0, 2.0, 3.0]
    assert unflatten(module, torch.tensor([4.0, 5.0, 6.0]))["a.weight"].tolist() == [[4.0, 5.0]]


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_flat_vectors_go_in_as_they_come_out(seed: int) -> None:
    module = ARCHITECTURE.build("x")
    vector = torch.randn(ARCHITECTURE.num_parameters, generator=torch.Generator().manual_seed(seed))
    load_flat(module, vector)
    assert torch.equal(flat_parameters(module), vector)


def test_a_flat_vector_is_a_copy() -> None:
    module = ARCHITECTURE.build("x")
    flat_parameters(module).zero_()
    assert flat_parameters(module).abs().sum() > 0


@pytest.mark.parametrize("shape", [(0,), (27,), (1, 26)])
def test_a_flat_vector_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        load_flat(ARCHITECTURE.build("x"), torch.zeros(shape))


@pytest.mark.parametrize(
    "module",
    [
        ARCHITECTURE.build("an expert"),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(7, 1, bias=False)),
        nn.Linear(0, 4),
        nn.Sequential(),
    ],
    ids=["mlp", "convolution", "an empty tensor", "nothing"],
)
def test_weights_as_an_array_are_the_librarys_bytes(module: nn.Module) -> None:
    assert weights_to_array(module).tobytes() == weights_to_bytes(module)


def test_weights_that_are_not_finite_become_no_array_either() -> None:
    module = ARCHITECTURE.build("an expert")
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(CorruptWeights):
        weights_to_array(module)
