"""What holds for every built-in architecture: config, digest, counts, limits, initial weights, and learning."""

import hashlib
import json
import math
from typing import Any

import pytest
import torch
from architecture_forms import SMALL, BuiltIn, architectures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from experts.architectures.base import MAX_PARAMETERS, probabilities
from experts.architectures.conv import MAX_RESPONSES, ConvArchitecture
from experts.architectures.deep import MAX_LAYERS, DeepArchitecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters, load_weights, weights_to_bytes
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.errors import ShapeMismatch, UnknownArchitecture
from experts.generators import torch_generator

KINDS = sorted(SMALL)
SIZES = [(kind, name) for kind in KINDS for name, value in SMALL[kind].to_config().items() if type(value) is int]


@settings(deadline=None, max_examples=40)  # a shared machine is slow at times
@given(architectures)
def test_a_config_survives_json_with_its_digest_and_its_size(architecture: BuiltIn) -> None:
    again = architecture_from_config(json.loads(json.dumps(architecture.to_config())))
    assert again == architecture
    assert again.digest() == architecture.digest()
    assert flat_parameters(again.build("uid")).numel() == architecture.num_parameters


@settings(deadline=None, max_examples=40)
@given(architectures, st.integers(0, 3))
def test_flops_are_those_that_torch_counts(architecture: BuiltIn, rows: int) -> None:
    module = architecture.build("uid")
    with FlopCounterMode(display=False) as counter:
        logits_BC = module(torch.zeros(rows, architecture.feature_dim))
    assert logits_BC.shape == (rows, architecture.num_classes)
    assert counter.get_total_flops() == rows * architecture.flops_per_sample
    assert architecture.flops_per_sample > 0


@pytest.mark.parametrize(("kind", "name"), [*SIZES, *((kind, "input_scale") for kind in KINDS)])
def test_every_field_changes_the_digest(kind: str, name: str) -> None:
    config = SMALL[kind].to_config()
    other = architecture_from_config(config | {name: type(config[name])(5)})
    assert other.digest() != SMALL[kind].digest()


def test_every_word_changes_the_digest() -> None:
    deep = SMALL["deep"].to_config()
    words = [{"activation": word} for word in ("relu", "tanh", "silu")] + [{"norm": "none"}, {}]
    assert len({architecture_from_config(deep | change).digest() for change in words}) == len(words)


def test_every_kind_has_a_digest_of_its_own() -> None:
    assert len({architecture.digest() for architecture in SMALL.values()}) == len(SMALL)


# Part of the protocol: a node of another version must name the same expert, spawn the same replica and write the same
# bytes. Digests of the config and of the initial weights for the uid "uid".
PINNED = {
    "adapter": (
        "5b41fba9db1dbd57bd1b533ed17de406ce0660ac20b0c753b24e6bb0be947025",
        "0ca019d18ba2517d5b32c61a51a2ebe3fea4d1627ab245a204db4ff18825ef01",
    ),
    "conv": (
        "cb01753954ab39ce023088a18fe341fef520dd7b6103ac8e8f6dd2caeab4ff67",
        "826955914b9764f797cc753412bb394dd8a48506fabfdf75aa97cf81ea74e1a9",
    ),
    "deep": (
        "62868cf39b02c7cb20ab56b378d8a4a4bbc2e910ef4998110df8f97f02e9e9f7",
        "af9539c6137f1289461918a50d1832ac595ce02c84d2729380ab9bc8070ab649",
    ),
    "linear": (
        "62da8d05976b2b40fb2dd27dfee8e26b77a8a05b44c68e6cc0ea8daf4682fdd8",
        "24a4d2676b62b080412b89c83beed314300c26a1753af52f7b60feed3482c48f",
    ),
    "mlp": (
        "3ee45ce9ddcab59862d056cb46269c76f33a1341408e742dc05d156a9a70a20d",
        "2b46c4d98ddeac0be880ccf524e9846ba4e5a968770fd01d53e01c3e674bb3f0",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_digest_and_initial_weights_never_change(kind: str) -> None:
    weights = weights_to_bytes(SMALL[kind].build("uid"))
    assert (SMALL[kind].digest(), hashlib.sha256(weights).hexdigest()) == PINNED[kind]


def test_experts_of_existing_meshes_keep_their_digest_and_their_initial_weights() -> None:
    # The form of the mesh's own default, at the tap B4.
    architecture = MlpArchitecture(feature_dim=640, hidden=8, num_classes=2)
    assert json.dumps(architecture.to_config()) == (
        '{"kind": "mlp", "feature_dim": 640, "hidden": 8, "num_classes": 2, "input_scale": 0.3}'
    )
    assert architecture.digest() == "9322aae5c50bdc0e9e9aacc5c622365f6dc61ad138668c2692c3bb8d33b9e84f"
    weights = weights_to_bytes(architecture.build("uid"))
    assert hashlib.sha256(weights).hexdigest() == "4ac6bee8f32f7b02436818e23c4db885bad8e039162c3896f456d476587e0d3a"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_builds_the_same_bits_and_another_seed_others(kind: str) -> None:
    architecture = SMALL[kind]
    assert torch.equal(flat_parameters(architecture.build("a")), flat_parameters(architecture.build("a")))
    assert not torch.equal(flat_parameters(architecture.build("a")), flat_parameters(architecture.build("b")))


@settings(deadline=None, max_examples=40)
@given(architectures)
def test_initial_weights_stay_within_one_over_root_fan_in(architecture: BuiltIn) -> None:
    fan_in = {"hidden": architecture.feature_dim, "down": architecture.feature_dim, "output": architecture.feature_dim}
    if architecture.kind == "mlp":
        fan_in["output"] = architecture.hidden
    if isinstance(architecture, DeepArchitecture):
        fan_in["output"] = architecture.hidden
    if isinstance(architecture, ConvArchitecture):
        fan_in |= {"conv": 9 * architecture.channels, "output": architecture.filters}
    module = architecture.build("uid")
    for name, parameter in module.named_parameters():
        layer = name.partition(".")[0]
        assert parameter.requires_grad
        assert parameter.dtype == torch.float32
        if layer not in {"up", "norm"}:
            # Hidden layers behind the first read hidden units.
            inputs = fan_in[layer] if name.startswith(("hidden.0", f"{layer}.w", f"{layer}.b")) else fan_in["output"]
            assert 0 < parameter.abs().max() <= 1 / math.sqrt(inputs) + 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_building_draws_nothing_from_the_global_stream(kind: str) -> None:
    before = torch.get_rng_state()
    SMALL[kind].build("uid")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "transformer"},
        {"kind": None},
        {"kind": ["mlp"]},
        {"num_classes": None},
        {"input_scale": 1},
        {"input_scale": "0.3"},
        {"input_scale": 0.0},
        {"input_scale": 10.1},
        {"input_scale": math.nan},
        {"input_scale": math.inf},
        {"extra": 1},
        {1: 1},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_that_is_not_ours_is_refused(kind: str, change: dict[Any, Any]) -> None:
    with pytest.raises(UnknownArchitecture):
        architecture_from_config(SMALL[kind].to_config() | change)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", None, 10**30, MAX_PARAMETERS])
@pytest.mark.parametrize(("kind", "name"), SIZES)
def test_a_size_that_is_no_size_or_too_large_is_refused(kind: str, name: str, value: object) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        architecture_from_config(SMALL[kind].to_config() | {name: value})
    assert caught.value.kind == kind
    assert name in caught.value.reason or "more than" in caught.value.reason


@pytest.mark.parametrize("value", ["", "RELU", "layer ", "batch", None, 0, True, ["relu"], {"relu": 1}])
@pytest.mark.parametrize("name", ["activation", "norm"])
def test_a_word_that_a_field_does_not_have_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnknownArchitecture, match=f"{name} = ") as caught:
        architecture_from_config(SMALL["deep"].to_config() | {name: value})
    assert caught.value.kind == "deep"


def test_hidden_layers_are_bounded_where_their_parameters_are_not() -> None:
    config = SMALL["deep"].to_config() | {"hidden": 1}
    assert architecture_from_config(config | {"layers": MAX_LAYERS}).num_parameters == 13 + 2 * 63 + 2 * 64 + 4
    with pytest.raises(UnknownArchitecture, match=f"layers = 65 is more than {MAX_LAYERS}"):
        architecture_from_config(config | {"layers": MAX_LAYERS + 1})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in SMALL[kind].to_config()])
def test_a_config_that_lacks_a_field_is_refused(kind: str, name: str) -> None:
    config = SMALL[kind].to_config()
    del config[name]
    with pytest.raises(UnknownArchitecture):
        architecture_from_config(config)


def test_the_largest_expert_has_exactly_the_parameters_allowed() -> None:
    config = SMALL["linear"].to_config() | {"feature_dim": MAX_PARAMETERS - 1, "num_classes": 1}
    assert architecture_from_config(config).num_parameters == MAX_PARAMETERS
    with pytest.raises(UnknownArchitecture, match="more than 16000000 parameters"):
        architecture_from_config(config | {"feature_dim": MAX_PARAMETERS})
    # Made here rather than read from a config, it is refused as well.
    with pytest.raises(UnknownArchitecture, match="more than 16000000 parameters"):
        LinearArchitecture(feature_dim=MAX_PARAMETERS, num_classes=1)


def test_a_map_is_bounded_where_its_parameters_are_not() -> None:
    config = ConvArchitecture(channels=1, height=256, width=256, filters=1, num_classes=1).to_config()
    assert architecture_from_config(config).num_parameters == 12
    with pytest.raises(UnknownArchitecture, match=f"more than {MAX_RESPONSES} responses"):
        architecture_from_config(config | {"filters": 2})
    with pytest.raises(UnknownArchitecture, match="a map of more than 16000000 values"):
        architecture_from_config(config | {"channels": 245})


@pytest.mark.parametrize("shape", [(12,), (2, 11), (1, 2, 12), (12, 1), (1, 2, 3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_another_shape_are_refused_by_name(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch) as caught:
        probabilities(SMALL[kind].build("uid"), torch.zeros(shape))
    assert caught.value.expected == ("B", 12)
    assert caught.value.got == shape


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind: str) -> None:
    assert probabilities(SMALL[kind].build("uid"), torch.zeros(0, 12)).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_of_one_class_is_certain(kind: str) -> None:
    architecture = architecture_from_config(SMALL[kind].to_config() | {"num_classes": 1})
    assert probabilities(architecture.build("uid"), torch.randn(4, 12)).tolist() == [[1.0]] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_weights_move_between_replicas_as_bytes(kind: str) -> None:
    module, replica = SMALL[kind].build("a"), SMALL[kind].build("b")
    data = weights_to_bytes(module)
    load_weights(replica, data)
    assert weights_to_bytes(replica) == data
    features_BD = torch.randn(5, 12)
    assert torch.equal(module(features_BD), replica(features_BD))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_with_the_default_settings(kind: str) -> None:
    # The class is whether the features of the first channel lean up or down: a problem for any of the kinds.
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.randn(400, 12, generator=generator)
    features_ND[:, :6] += torch.where(torch.arange(400) % 2 == 0, 2.0, -2.0)[:, None]
    labels_N = torch.arange(400) % 2
    module = SMALL[kind].build("uid")
    data = DistillationData(features_ND=features_ND, labels_N=labels_N)
    run = DistillationRun(module, data, DistillationConfig(steps=200), torch_generator(0, "test"))
    while not run.done:
        run.step()
    assert (probabilities(module, features_ND).argmax(dim=1) == labels_N).float().mean() > 0.95
