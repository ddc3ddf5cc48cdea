"""ReLU features of the router: the equation, what their bits depend on, and what they do for it."""

from dataclasses import asdict

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import SettingOutOfRange, ShapeMismatch
from experts.router.features import MAX_RANDOM_FEATURES, ReluFeatures, ReluFeaturesConfig
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics

CONFIG = ReluFeaturesConfig(feature_dim=5, width=4, start=1, stop=4)
BIAS_BITS = ["-0x1.7e96200000000p-1", "0x1.78d7000000000p-3", "0x1.2dd6980000000p-1", "-0x1.4474a00000000p-4"]
WEIGHT_BITS = "-0x1.1139140000000p-1"


def noise(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.data())
def test_psi_is_the_features_and_the_relus_of_a_slice(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 6))
    start = data.draw(st.integers(0, dim - 1))
    stop = data.draw(st.integers(start + 1, dim))
    width, rows = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    mapped = ReluFeatures(ReluFeaturesConfig(feature_dim=dim, width=width, start=start, stop=stop, seed=3))
    h = noise(rows, dim)
    psi = mapped(h)
    assert psi.shape == (rows, mapped.feature_dim) == (rows, dim + width)
    weights, bias = mapped.weight_SR.tolist(), mapped.bias_R.tolist()
    for row in range(rows):
        wanted = equations.relu_features(h[row].tolist(), weights, bias, start, stop)
        np.testing.assert_allclose(psi[row], wanted, atol=1e-5)


def test_features_outside_the_slice_change_nothing_but_themselves() -> None:
    mapped = ReluFeatures(CONFIG)
    h = noise(3, 5)
    other = h.clone()
    other[:, [0, 4]] += 1.0
    assert torch.equal(mapped(h)[:, 5:], mapped(other)[:, 5:])
    inside = h.clone()
    inside[:, 1] += 1.0
    assert not torch.equal(mapped(h)[:, 5:], mapped(inside)[:, 5:])


@pytest.mark.parametrize("num_sliced", [64, 1024])
def test_their_size_does_not_depend_on_the_width_of_the_slice(num_sliced: int) -> None:
    mapped = ReluFeatures(ReluFeaturesConfig(feature_dim=num_sliced, width=256, start=0, stop=num_sliced))
    before_bias = noise(500, num_sliced) @ mapped.weight_SR
    assert before_bias.var().item() == pytest.approx(1.0, rel=0.05)
    assert mapped.bias_R.abs().max() <= 1.0
    assert mapped.bias_R.var().item() == pytest.approx(1 / 3, rel=0.2)


def test_w_and_b_are_the_same_bits_everywhere() -> None:
    """Multiples of 2^-24 in [0, 1) out of Philox, mapped by one multiplication: the first ones, written down."""
    mapped = ReluFeatures(CONFIG)
    assert [value.hex() for value in mapped.bias_R.tolist()] == BIAS_BITS
    assert mapped.weight_SR[0, 0].item().hex() == WEIGHT_BITS


def test_equal_configs_give_equal_bytes_and_any_change_other_bytes() -> None:
    before = torch.get_rng_state()
    data = ReluFeatures(CONFIG).to_bytes()
    assert ReluFeatures(CONFIG).to_bytes() == data
    assert torch.equal(torch.get_rng_state(), before)
    changes = [{"seed": 1}, {"width": 3}, {"start": 0}, {"stop": 5}, {"feature_dim": 6}, {"start": 2, "stop": 5}]
    others = {ReluFeatures(ReluFeaturesConfig(**asdict(CONFIG) | change)).to_bytes() for change in changes}
    assert len(others) == len(changes)
    assert data not in others


def test_a_config_comes_back_from_what_it_was_written_as() -> None:
    mapped = ReluFeatures(CONFIG)
    assert mapped.to_config() == asdict(CONFIG)
    again = ReluFeatures.from_config(mapped.to_config())
    assert again.to_bytes() == mapped.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": MAX_RANDOM_FEATURES + 1},
        {"width": True},
        {"width": 4.0},
        {"feature_dim": 0},
        {"feature_dim": "5"},
        {"start": -1},
        {"start": 4},
        {"stop": 6},
        {"stop": 0},
        {"stop": None},
        {"seed": -1},
        {"seed": 2**63},
        {"extra": 1},
    ],
)
def test_a_config_out_of_range_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(SettingOutOfRange):
        ReluFeatures.from_config(asdict(CONFIG) | change)
    short = asdict(CONFIG)
    del short["seed"]
    with pytest.raises(SettingOutOfRange):
        ReluFeatures.from_config(short)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 6), (1, 2, 5)])
def test_features_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        ReluFeatures(CONFIG)(torch.zeros(shape))


def test_a_router_on_psi_tells_apart_what_no_linear_one_can() -> None:
    """Classes by the sign of a product: the linear router guesses, the one on psi knows."""
    train, test = noise(600, 2), noise(300, 2, seed=1)
    mapped = ReluFeatures(ReluFeaturesConfig(feature_dim=2, width=40, start=0, stop=2))

    def labels(h: torch.Tensor) -> list[str]:
        return ["same" if product > 0 else "other" for product in (h[:, 0] * h[:, 1]).tolist()]

    def accuracy(train_psi: torch.Tensor, test_psi: torch.Tensor) -> float:
        router = solve_ridge(ClassStatistics.from_features(train_psi, labels(train)), RouterConfig())
        pairs = zip(router.class_argmax(test_psi), labels(test), strict=True)
        return sum(guess == label for guess, label in pairs) / len(test)

    assert accuracy(train, test) < 0.7
    assert accuracy(mapped(train), mapped(test)) > 0.9
