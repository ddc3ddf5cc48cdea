"""The diagonal Fisher information against a plain loop over samples, for every kind of layer, and at its edges."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from architecture_forms import SMALL
from torch import Tensor, nn
from torch.nn import functional

from experts.errors import SettingOutOfRange, ShapeMismatch, UndefinedFigure
from experts.generators import torch_generator
from experts.preservation import fisher
from experts.preservation.fisher import fisher_diagonal

N, C = 9, 3


def looped(module: nn.Module, inputs: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """The definition: each sample's own gradient, squared, then the mean."""
    module = copy.deepcopy(module).eval().requires_grad_()
    parameters = dict(module.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for n in range(len(inputs)):
        loss = functional.cross_entropy(module(inputs[n : n + 1]), labels_N[n : n + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient**2
    return {name: value / len(inputs) for name, value in total.items()}


class Written(nn.Module):
    """A module whose forward pass a test writes down."""

    def __init__(self, forward: Callable[[SimpleNamespace | nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.written(self, inputs)


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4))
        self.unused = nn.Parameter(torch.rand(2))
        self.output = nn.Linear(4, C)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(torch.tanh(inputs * self.gain))


class Doubled(nn.Linear):
    """A subclass that does not compute what its type says."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * 2


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, C))


def normalised() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, C))
    module(torch.randn(20, 2, 6, 6) * 3 + 1)  # running statistics of its own
    return module


def steered() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, inputs, outputs: outputs * 3)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, C))


FLAT, SEQUENCE, MAP = (4,), (5, 4), (4, 6, 5)

# By name: the module, the shape of a sample, and which of its parameters are read off one backward pass.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, C, bias=False)),
        FLAT,
        {"0.weight", "0.bias", "2.weight"},
    ),
    "strided, grouped, padded, dilated convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(126, C),
        ),
        MAP,
        {"0.weight", "0.bias", "3.weight", "3.bias"},
    ),
    "convolution at one position, channel by channel": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, (6, 5), groups=4, bias=False), nn.Flatten(), nn.Linear(4, C)),
        MAP,
        {"0.weight", "2.weight", "2.bias"},
    ),
    "convolution with another padding": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(2, 2, 3, padding="same"),
            nn.Flatten(),
            nn.Linear(60, C),
        ),
        MAP,
        {"3.weight", "3.bias"},
    ),
    "linear over a sequence": (
        lambda: Written(
            lambda m, x: m.output(torch.tanh(m.each(x)).mean(dim=1)), each=nn.Linear(4, 6), output=nn.Linear(6, C)
        ),
        SEQUENCE,
        {"each.weight", "each.bias", "output.weight", "output.bias"},
    ),
    "linear over a sequence with the batch behind": (
        lambda: Written(
            lambda m, x: m.output(torch.tanh(m.each(x.transpose(0, 1))).mean(dim=0)),
            each=nn.Linear(4, 6),
            output=nn.Linear(6, C),
        ),
        (3, 4),  # as many positions as samples in one of the passes that look for it
        {"output.weight", "output.bias"},
    ),
    "linear over a reshaped batch": (
        lambda: Written(
            lambda m, x: m.output(torch.tanh(m.each(x.reshape(-1, 4))).reshape(len(x), -1)),
            each=nn.Linear(4, 2),
            output=nn.Linear(10, C),
        ),
        SEQUENCE,
        {"output.weight", "output.bias"},
    ),
    "layer normalisation": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, C)),
        FLAT,
        {"0.weight", "0.bias", "3.weight", "3.bias"},
    ),
    "batch normalisation": (normalised, (2, 6, 6), {"0.weight", "0.bias", "4.weight", "4.bias"}),
    "layer called twice": (
        lambda: Written(
            lambda m, x: m.output(torch.tanh(m.twice(torch.tanh(m.twice(x))))),
            twice=nn.Linear(4, 4),
            output=nn.Linear(4, C),
        ),
        FLAT,
        {"output.weight", "output.bias"},
    ),
    "weights used by hand as well": (
        lambda: Written(
            lambda m, x: m.output(functional.linear(torch.tanh(m.once(x)), m.once.weight)),
            once=nn.Linear(4, 4),
            output=nn.Linear(4, C),
        ),
        FLAT,
        {"output.weight", "output.bias"},
    ),
    "shared weights": (tied, FLAT, {"4.weight", "4.bias"}),
    "own parameters": (OwnParameter, FLAT, {"output.weight", "output.bias"}),
    "a subclass": (lambda: nn.Sequential(Doubled(4, 6), nn.Linear(6, C)), FLAT, {"1.weight", "1.bias"}),
    "a hook": (steered, FLAT, {"0.weight", "0.bias", "2.weight", "2.bias"}),
    "dropout, which is off": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.LayerNorm(6), nn.Dropout(), nn.Linear(6, C)),
        FLAT,
        {"0.weight", "0.bias", "4.weight", "4.bias"},
    ),
}


def example(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    made, shape, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # float64, so that what differs is not a rounding of the loop's.
        return made().double(), torch.randn(N, *shape).double(), torch.randint(C, (N,))


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_mean_of_each_samples_squared_gradient(name: str) -> None:
    module, inputs, labels_N = example(name)
    expected = looped(module, inputs, labels_N)
    found = fisher_diagonal(module, inputs, labels_N)
    assert list(found) == [parameter for parameter, _ in module.named_parameters()]
    for parameter, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[parameter], rtol=1e-6, atol=1e-30)
    # Not what a batch's mean gradient would give.
    loss = functional.cross_entropy(module.eval()(inputs), labels_N)
    (gradient,) = torch.autograd.grad(loss, [list(module.parameters())[-1]])
    assert not torch.allclose(gradient**2, expected[list(expected)[-1]], rtol=0.1)


@pytest.mark.parametrize("name", CASES)
def test_only_what_has_to_be_is_differentiated_for_each_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    differentiated: set[str] = set()
    real = fisher._sample_by_sample

    def seen(module: nn.Module, parameters: dict[str, Tensor], *rest: Tensor) -> object:
        differentiated.update(parameters)
        return real(module, parameters, *rest)

    monkeypatch.setattr(fisher, "_sample_by_sample", seen)
    module, inputs, labels_N = example(name)
    fisher_diagonal(module, inputs, labels_N)
    assert {parameter for parameter, _ in module.named_parameters()} - differentiated == CASES[name][2]


@pytest.mark.parametrize("max_bytes", [0, 4_000, 20_000])
@pytest.mark.parametrize("kind", ["empirical", "true"])
@pytest.mark.parametrize("name", CASES)
def test_how_samples_are_grouped_changes_nothing(name: str, kind: fisher.FisherKind, max_bytes: int) -> None:
    module, inputs, labels_N = example(name)
    at_once, in_chunks = (
        fisher_diagonal(module, inputs, labels_N, kind=kind, generator=torch_generator(0, "labels"), max_bytes=size)
        for size in (2**30, max_bytes)
    )
    for parameter, value in at_once.items():
        torch.testing.assert_close(in_chunks[parameter], value, rtol=1e-6, atol=1e-30)


def test_the_largest_thing_made_fits_into_the_memory_given(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = torch.einsum

    def watched(equation: str, *operands: Tensor) -> Tensor:
        nonlocal largest
        result = real(equation, *operands)
        largest = max(largest, *(tensor.numel() * 8 for tensor in (*operands, result)))
        return result

    monkeypatch.setattr(torch, "einsum", watched)
    module, inputs, labels_N = example("strided, grouped, padded, dilated convolution")
    fisher_diagonal(module, inputs.repeat(20, 1, 1, 1), labels_N.repeat(20), max_bytes=100_000)
    assert 30_000 < largest <= 100_000


@pytest.mark.parametrize("name", ["layer normalisation", "batch normalisation", "own parameters"])
def test_the_module_and_the_global_stream_stay_as_they_were(name: str) -> None:
    module, inputs, labels_N = example(name)
    module.train()
    next(module.children(), module).eval()
    first, *others = module.parameters()
    first.requires_grad_(False)
    for parameter in others:
        parameter.grad = torch.full_like(parameter, 7.0)
    modes = [part.training for part in module.modules()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    stream = torch.get_rng_state()
    with torch.no_grad():
        found = fisher_diagonal(module, inputs, labels_N, kind="true", generator=torch_generator(0, "labels"))
    assert torch.equal(torch.get_rng_state(), stream)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not first.requires_grad
    assert first.grad is None
    assert all(parameter.requires_grad and (parameter.grad == 7).all() for parameter in others)
    assert not any(part._forward_hooks for part in module.modules())
    # The frozen one is scored as well.
    assert all(value.any() for parameter, value in found.items() if parameter != "unused")


def test_labels_of_the_models_own_are_drawn_from_its_answers() -> None:
    module = nn.Linear(1, 3).double()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    inputs = torch.ones(20_000, 1, dtype=torch.float64)
    found = fisher_diagonal(module, inputs, kind="true", generator=torch_generator(1, "labels"))
    # E_y[(p - onehot(y))^2] = p (1 - p), the variance of each class.
    torch.testing.assert_close(found["bias"], torch.tensor([0.25, 0.21, 0.16]), rtol=0.03, atol=0)
    again = fisher_diagonal(module, inputs, kind="true", generator=torch_generator(1, "labels"))
    other = fisher_diagonal(module, inputs, kind="true", generator=torch_generator(2, "labels"))
    assert torch.equal(found["bias"], again["bias"])
    assert not torch.equal(found["bias"], other["bias"])


def test_on_what_a_model_has_fitted_the_empirical_information_vanishes_and_the_true_one_does_not() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[6.0, 0.0], [-6.0, 0.0]]))
        module.bias.zero_()
    # One sample in a hundred is undecided; the model's own guess at it is what the labels say.
    inputs = torch.cat([torch.tensor([[1.0, 1.0]]).repeat(99, 1), torch.tensor([[0.05, 1.0]])])
    labels_N = torch.zeros(100, dtype=torch.int64)
    empirical = fisher_diagonal(module, inputs, labels_N)["bias"]
    true = torch.stack(
        [
            fisher_diagonal(module, inputs, kind="true", generator=torch_generator(seed, "labels"))["bias"]
            for seed in range(100)
        ]
    ).mean(dim=0)
    assert (true > 1.5 * empirical).all()


def test_a_float32_model_may_be_surer_than_its_probabilities_can_say() -> None:
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[10.0], [-10.0]]))
        module.bias.zero_()
    found = fisher_diagonal(module, torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))
    # 1 - p is 2e-9: a float32 next to 1 is either that 1 or 6e-8 away.
    assert found["bias"].tolist() == pytest.approx([(1 + math.exp(20)) ** -2] * 2, rel=1e-5, abs=0)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_built_in_expert_is_scored(kind: str) -> None:
    module = SMALL[kind].build("uid").double()
    features_ND = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)).double()
    labels_N = torch.arange(30) % 2
    expected = looped(module, features_ND, labels_N)
    for name, value in fisher_diagonal(module, features_ND, labels_N, max_bytes=10_000).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-30)


def test_a_module_without_parameters_has_none_to_score() -> None:
    assert fisher_diagonal(nn.Identity(), torch.ones(2, 3), torch.tensor([0, 1])) == {}


def test_what_is_missing_or_out_of_range_is_refused_by_name() -> None:
    module, inputs, labels_N = example("mlp")
    with pytest.raises(UndefinedFigure, match="there are no samples"):
        fisher_diagonal(module, inputs[:0], labels_N[:0])
    with pytest.raises(UndefinedFigure, match="the empirical one has no labels"):
        fisher_diagonal(module, inputs)
    with pytest.raises(UndefinedFigure, match="no generator"):
        fisher_diagonal(module, inputs, labels_N, kind="true")
    with pytest.raises(ShapeMismatch, match=r"labels: expected shape \(9\), got \(8\)"):
        fisher_diagonal(module, inputs, labels_N[:-1])
    with pytest.raises(ShapeMismatch, match="logits"):
        fisher_diagonal(nn.Identity(), torch.ones(2, 3, 4), torch.tensor([0, 1]))
    for wrong in (-1, C):
        with pytest.raises(SettingOutOfRange, match="a column of the logits, 0 to 2") as caught:
            fisher_diagonal(module, inputs, labels_N.index_fill(0, torch.tensor([4]), wrong))
        assert caught.value.value == wrong
