"""Architectures, their modules and their initial weights."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.checkpoint import flat_parameters
from experts.errors import ShapeMismatch, UnknownArchitecture
from experts.modules import MAX_PARAMETERS, MlpArchitecture, architecture_from_config, probabilities

SMALL = MlpArchitecture(feature_dim=3, hidden=2, num_classes=2)

architectures = st.builds(
    MlpArchitecture,
    feature_dim=st.integers(1, 40),
    hidden=st.integers(1, 9),
    num_classes=st.integers(1, 5),
    input_scale=st.floats(0.01, 10),
)


def test_an_expert_computes_the_equation_in_plain_loops() -> None:
    module = SMALL.build("uid")
    weights = {name: parameter.tolist() for name, parameter in module.named_parameters()}
    h = [0.7, -1.5, 2.0]
    hidden = [
        max(0.0, b + sum(v * 0.3 * x for v, x in zip(row, h, strict=True)))
        for row, b in zip(weights["hidden.weight"], weights["hidden.bias"], strict=True)
    ]
    scores = [
        b + sum(u * a for u, a in zip(row, hidden, strict=True))
        for row, b in zip(weights["output.weight"], weights["output.bias"], strict=True)
    ]
    assert any(hidden)
    assert module(torch.tensor([h])).tolist()[0] == pytest.approx(scores, abs=1e-6)
    total = sum(math.exp(score) for score in scores)
    expected = [math.exp(score) / total for score in scores]
    assert probabilities(module, torch.tensor([h])).tolist()[0] == pytest.approx(expected, abs=1e-6)


def test_an_expert_of_one_class_is_certain() -> None:
    module = MlpArchitecture(feature_dim=3, hidden=2, num_classes=1).build("uid")
    assert probabilities(module, torch.randn(4, 3)).tolist() == [[1.0]] * 4


def test_the_same_seed_builds_the_same_bits_and_another_seed_others() -> None:
    assert torch.equal(flat_parameters(SMALL.build("a")), flat_parameters(SMALL.build("a")))
    assert not torch.equal(flat_parameters(SMALL.build("a")), flat_parameters(SMALL.build("b")))


def test_initial_weights_never_change() -> None:
    # Part of the protocol: a node of another version must spawn the same replica.
    assert SMALL.build("uid").state_dict()["hidden.weight"].tolist()[0] == pytest.approx(
        [-0.11532582342624664, 0.512233316898346, 0.5068522691726685], abs=0
    )


@settings(deadline=None)  # a shared machine is slow at times
@given(architectures)
def test_initial_weights_stay_within_one_over_root_fan_in(architecture: MlpArchitecture) -> None:
    module = architecture.build("uid")
    state = module.state_dict()
    for layer, fan_in in (("hidden", architecture.feature_dim), ("output", architecture.hidden)):
        for part in ("weight", "bias"):
            assert state[f"{layer}.{part}"].abs().max() <= 1 / math.sqrt(fan_in) + 1e-7
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_building_draws_nothing_from_the_global_stream() -> None:
    before = torch.get_rng_state()
    SMALL.build("uid")
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(architectures)
def test_a_config_survives_json_with_its_digest_and_its_size(architecture: MlpArchitecture) -> None:
    again = architecture_from_config(json.loads(json.dumps(architecture.to_config())))
    assert again == architecture
    assert again.digest() == architecture.digest()
    assert flat_parameters(again.build("uid")).numel() == architecture.num_parameters


def test_every_field_changes_the_digest() -> None:
    others = [
        MlpArchitecture(feature_dim=4, hidden=2, num_classes=2),
        MlpArchitecture(feature_dim=3, hidden=3, num_classes=2),
        MlpArchitecture(feature_dim=3, hidden=2, num_classes=3),
        MlpArchitecture(feature_dim=3, hidden=2, num_classes=2, input_scale=1.0),
    ]
    assert len({architecture.digest() for architecture in (SMALL, *others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "transformer"},
        {"kind": ["mlp"]},
        {"hidden": 0},
        {"hidden": True},
        {"hidden": 2.0},
        {"hidden": "2"},
        {"feature_dim": -1},
        {"feature_dim": 10**30},
        {"feature_dim": MAX_PARAMETERS},
        {"num_classes": None},
        {"input_scale": 1},
        {"input_scale": 0.0},
        {"input_scale": math.nan},
        {"input_scale": math.inf},
        {"extra": 1},
    ],
)
def test_a_config_that_is_not_ours_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownArchitecture):
        architecture_from_config(SMALL.to_config() | change)


@pytest.mark.parametrize("key", ["kind", "hidden", "input_scale"])
def test_a_config_that_lacks_a_field_is_refused(key: str) -> None:
    config = SMALL.to_config()
    del config[key]
    with pytest.raises(UnknownArchitecture):
        architecture_from_config(config)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
def test_features_of_another_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch) as caught:
        probabilities(SMALL.build("uid"), torch.zeros(shape))
    assert caught.value.expected == ("B", 3)
    assert caught.value.got == shape


def test_no_rows_give_no_rows() -> None:
    assert probabilities(SMALL.build("uid"), torch.zeros(0, 3)).shape == (0, 2)
