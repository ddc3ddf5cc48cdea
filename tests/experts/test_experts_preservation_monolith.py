"""Whole networks taken apart: the dense layers at their end, and what they know in experts."""

import itertools

import pytest
import torch
from old_experts import form
from torch import Tensor, nn

from experts.errors import NothingCorresponds, SettingOutOfRange, ShapeMismatch
from experts.preservation.chain import Chain
from experts.preservation.monolith import dense_tail, translated
from experts.preservation.transfer import Source, TransferConfig, transfer
from experts.preservation.weights_alone import chain_of_tensors
from experts.teachers.cnn import untrained_cnn


def images(n: int = 40) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def randomised(module: nn.Module) -> nn.Module:
    """In evaluation mode, with weights and statistics that mean something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.1)
                if tensor.ndim == 2:
                    tensor.sub_(0.5)
    return module.eval()


class Written(nn.Module):
    """Activations and flattening in its code, not as modules; a layer that is never called; two heads in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.unused = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(3 * 36, 12), nn.Linear(12, 9)])
        self.head = nn.Linear(9, 4, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        values = torch.relu(self.stem(images_BCHW)).flatten(1)
        values = nn.functional.gelu(self.blocks[0](values))
        values = torch.tanh(self.blocks[1](values))
        logits: Tensor = self.head(values)
        return logits


def sequence(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *between, nn.Linear(10, 4))


NETWORKS = {
    "the reference CNN": (
        lambda: untrained_cnn("abcd", channels=1, pixels=8, generator=torch.Generator().manual_seed(3)),
        2,
    ),
    "written out": (Written, 3),
    "batch normalisation": (lambda: sequence(nn.BatchNorm1d(10), nn.ReLU()), 2),
    "layer normalisation": (lambda: sequence(nn.LayerNorm(10), nn.SiLU(), nn.Dropout()), 2),
    "without gain": (lambda: sequence(nn.LayerNorm(10, elementwise_affine=False), nn.Tanh()), 2),
    "no activation": (lambda: sequence(nn.Identity()), 2),
    "an unknown activation": (lambda: sequence(nn.ELU()), 1),
    "a normalisation at the wrong place": (lambda: sequence(nn.ReLU(), nn.LayerNorm(10)), 1),
    "tokens": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 6), nn.Flatten(), nn.Linear(6, 4)), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tail_computes_what_the_network_does(name: str) -> None:
    make, layers = NETWORKS[name]
    network = randomised(make())
    tail = dense_tail(network, images())
    with torch.no_grad():
        assert torch.allclose(tail.chain(tail.features_ND), network(images()), atol=1e-5)
    assert len(tail.chain.stages) == layers
    assert tail.first in dict(network.named_modules())


def test_as_many_layers_as_are_asked_for() -> None:
    network = randomised(Written())
    tail = dense_tail(network, images(), layers=2)
    assert [stage.name for stage in tail.chain.stages] == ["blocks.1", "head"]
    assert [stage.activation for stage in tail.chain.stages] == ["tanh", "identity"]
    assert tail.features_ND.shape == (40, 12)
    with pytest.raises(NothingCorresponds, match="3 dense layers that follow each other, not with 4"):
        dense_tail(network, images(), layers=4)


def test_a_network_that_ends_otherwise_is_refused() -> None:
    with pytest.raises(NothingCorresponds, match="ends with 0 dense layers"):
        dense_tail(randomised(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())), images())
    with pytest.raises(NothingCorresponds, match="ends with 0 dense layers"):
        dense_tail(randomised(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(dim=1))), images())


def test_looking_leaves_the_network_as_it_was() -> None:
    network = randomised(sequence(nn.BatchNorm1d(10), nn.ReLU()))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dense_tail(network, images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_another_trunk_sees_the_same_where_its_features_say_as_much() -> None:
    network = randomised(sequence(nn.LayerNorm(10), nn.ReLU()))
    tail = dense_tail(network, images(400))
    mixing = torch.randn(64, 70, generator=torch.Generator().manual_seed(4))
    features = tail.features_ND @ mixing
    chain = translated(tail.chain, tail.features_ND, features, ridge=1e-9)
    assert chain.feature_dim == 70
    with torch.no_grad():
        assert torch.allclose(chain(features), tail.chain(tail.features_ND), atol=1e-2)
    with pytest.raises(ShapeMismatch):
        translated(tail.chain, tail.features_ND[:, :5], features)
    with pytest.raises(ShapeMismatch):
        translated(tail.chain, tail.features_ND, features[:9])


def test_experts_by_class_capability_answer_as_the_whole_did() -> None:
    classes = ("ant", "bee", "cat", "dog")
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4)))
    tail = dense_tail(network, images(400))
    with torch.no_grad():
        logits = network(images(400))
    for names in (("ant", "cat"), ("dog", "bee")):
        columns = [classes.index(name) for name in names]
        expert = transfer(
            Source(tail.chain, classes),
            form("mlp", feature_dim=64, hidden=16, num_classes=2),
            names,
            tail.features_ND,
            None,
            TransferConfig(fisher="true"),
            seed="expert",
            generator=torch.Generator().manual_seed(5),
        )
        with torch.no_grad():
            own = torch.softmax(expert.module(tail.features_ND), dim=1)
            theirs = torch.softmax(logits[:, columns], dim=1)
        assert float((own - theirs).abs().max()) < 0.1
        assert expert.report.layers[0].old_units == 24


def state_of(*sizes: int, prefix: str = "layers") -> dict[str, Tensor]:
    generator, tensors = torch.Generator().manual_seed(6), {}
    for number, (inputs, units) in enumerate(itertools.pairwise(sizes)):
        tensors[f"{prefix}.{number}.weight"] = torch.randn(units, inputs, generator=generator)
        tensors[f"{prefix}.{number}.bias"] = torch.randn(units, generator=generator)
    return tensors


def test_weights_alone_say_which_layers_there_were() -> None:
    # Twelve layers: as text, 10 would stand before 2.
    tensors = state_of(*range(20, 7, -1))
    chain = chain_of_tensors(tensors, activation="tanh")
    values = items = torch.randn(5, 20, generator=torch.Generator().manual_seed(7))
    for number in range(12):
        values = values @ tensors[f"layers.{number}.weight"].T + tensors[f"layers.{number}.bias"]
        values = values if number == 11 else torch.tanh(values)
    with torch.no_grad():
        assert torch.allclose(chain(items), values, atol=1e-4)


def test_only_the_dense_layers_at_the_end_belong_together() -> None:
    tensors = {"conv.weight": torch.zeros(4, 1, 3, 3), "conv.bias": torch.zeros(4)} | state_of(16, 6, 3, prefix="fc")
    chain = chain_of_tensors(tensors)
    assert [stage.name for stage in chain.stages] == ["fc.0", "fc.1"]
    assert [stage.activation for stage in chain.stages] == ["relu", "identity"]
    assert len(chain_of_tensors(tensors, layers=1).stages) == 1
    assert isinstance(chain_of_tensors({"head.weight": torch.zeros(3, 5)}), Chain)


def test_weights_that_are_no_such_end_are_refused() -> None:
    with pytest.raises(NothingCorresponds, match="0 dense layers"):
        chain_of_tensors({"conv.weight": torch.zeros(4, 1, 3, 3)})
    with pytest.raises(NothingCorresponds, match="0 dense layers"):
        chain_of_tensors({})
    with pytest.raises(NothingCorresponds, match="2 dense layers that fit each other, not 3"):
        chain_of_tensors(state_of(5, 4, 3), layers=3)
    with pytest.raises(SettingOutOfRange, match="swish"):
        chain_of_tensors(state_of(5, 4, 3), activation="swish")
