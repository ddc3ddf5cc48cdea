"""What an expert knows in another architecture: what is exact is exact, and the rest is as the equations say."""

import copy

import pytest
import torch
from old_experts import CLASSES, KINDS, D, carried, features, form, learned
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters
from experts.errors import NothingCorresponds, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch, UndefinedFigure
from experts.preservation.transfer import Source, TransferConfig, transfer

UNFITTED = TransferConfig(refit=False)


def difference(module: nn.Module, other: nn.Module) -> float:
    """Largest difference of the logits of new items, relative to the largest logit."""
    items = features(50, seed=9)
    with torch.no_grad():
        return float((module(items) - other(items)).abs().max() / other(items).abs().max())


EXACT = {
    "the same form": ("mlp", {}, "mlp", {}),
    "wider": ("mlp", {}, "mlp", {"hidden": 16}),
    "wider by one": ("mlp", {}, "mlp", {"hidden": 8}),
    "more filters": ("conv", {}, "conv", {"filters": 13}),
    "a wider bottleneck": ("adapter", {}, "adapter", {"bottleneck": 9}),
    "another scale of the features": ("mlp", {}, "mlp", {"input_scale": 2.5}),
    "a layer more": ("mlp", {}, "deep", {"hidden": 7, "layers": 2, "activation": "relu", "norm": "none"}),
    "two layers more, and wider": (
        "mlp",
        {},
        "deep",
        {"hidden": 11, "layers": 3, "activation": "relu", "norm": "none"},
    ),
    "a layer more behind others": (
        "deep",
        {"activation": "relu", "norm": "none"},
        "deep",
        {"layers": 3, "activation": "relu", "norm": "none"},
    ),
    "hidden units for a linear expert": ("linear", {}, "mlp", {"hidden": 6}),
    "more than it needs": ("linear", {}, "mlp", {"hidden": 10}),
    "gelu units for a linear expert": (
        "linear",
        {},
        "deep",
        {"hidden": 6, "layers": 1, "activation": "gelu", "norm": "none"},
    ),
    "a correction for a linear expert": ("linear", {}, "adapter", {}),
    "hidden units for a correction": ("adapter", {}, "mlp", {"hidden": 10}),
    "another scale behind a correction": ("adapter", {}, "adapter", {"input_scale": 1.7}),
    "normalised, deep": ("deep", {}, "deep", {}),
}


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("case", EXACT)
def test_the_new_form_computes_what_the_old_one_did(case: str, fit: bool) -> None:
    old_kind, old_settings, new_kind, new_settings = EXACT[case]
    old, new = form(old_kind, **old_settings), form(new_kind, **new_settings)
    module = learned(old)
    result = carried(old, module, new, TransferConfig(refit=fit))
    assert difference(result.module, module) < 1e-4
    assert all(layer.importance_kept == 1.0 and not layer.dropped for layer in result.report.layers)


def test_copies_of_a_unit_share_its_outgoing_weights_unequally() -> None:
    old, new = form("mlp", hidden=2), form("mlp", hidden=3)
    module = learned(old)
    wide = carried(old, module, new, UNFITTED).module
    incoming, outgoing = wide.get_parameter("hidden.weight").detach(), wide.get_parameter("output.weight").detach()
    first, second = next((i, j) for i in range(3) for j in range(i) if torch.equal(incoming[i], incoming[j]))
    shares = outgoing[:, first] / (outgoing[:, first] + outgoing[:, second])
    assert torch.allclose(shares, shares[0].expand(3), atol=1e-4)
    assert abs(float(shares[0]) - 0.5) > 0.01


def silenced(module: nn.Module, units: list[int]) -> nn.Module:
    """With hidden units that no class listens to."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        module.get_parameter("output.weight")[:, units] = 0.0
    return module


# The plain sum of Fisher information counts weights that could matter: nobody listens yet, but the loss would change.
@pytest.mark.parametrize("score", ["gate", "fisher_theta2", "magnitude"])
def test_units_that_do_nothing_go_first(score: str) -> None:
    old, new = form("mlp"), form("mlp", hidden=4)
    module = silenced(learned(old), [0, 3, 6])
    result = carried(old, module, new, TransferConfig(refit=False, score=score))
    assert difference(result.module, module) < 1e-4
    kept = module.get_parameter("hidden.weight")[[1, 2, 4, 5]]
    assert torch.allclose(result.module.get_parameter("hidden.weight"), kept, atol=1e-6)


def test_what_a_twin_did_its_twin_does() -> None:
    old, new = form("mlp"), form("mlp", hidden=6)
    module = learned(old)
    with torch.no_grad():
        # Twice the answer of another unit.
        module.get_parameter("hidden.weight")[5] = 2 * module.get_parameter("hidden.weight")[2]
        module.get_parameter("hidden.bias")[5] = 2 * module.get_parameter("hidden.bias")[2]
        module.get_parameter("output.weight")[:, 2] = 0.01  # the least of all
    result = carried(old, module, new, UNFITTED)
    assert difference(result.module, module) < 1e-4
    (hidden, _) = result.report.layers
    assert (hidden.mapped, hidden.merged, hidden.dropped) == (6, 1, 0)
    assert hidden.importance_kept < 1


def test_a_unit_that_always_answers_the_same_leaves_its_answer_in_the_bias() -> None:
    old, new = form("mlp"), form("mlp", hidden=6)
    module = learned(old)
    with torch.no_grad():
        module.get_parameter("hidden.weight")[4] = 0.0
        module.get_parameter("hidden.bias")[4] = 3.0
        module.get_parameter("output.weight")[:, 4] = torch.tensor([0.02, -0.01, 0.03])
    result = carried(old, module, new, UNFITTED)
    assert difference(result.module, module) < 1e-4
    assert result.report.layers[0].dropped == 1


def test_the_order_of_the_old_units_means_nothing() -> None:
    old, new = form("mlp"), form("mlp", hidden=4)
    module = learned(old)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = copy.deepcopy(module)
    with torch.no_grad():
        for name, dim in (("hidden.weight", 0), ("hidden.bias", 0), ("output.weight", 1)):
            shuffled.get_parameter(name).copy_(module.get_parameter(name).index_select(dim, order))
    first, second = carried(old, module, new).module, carried(old, shuffled, new).module
    assert difference(first, second) < 1e-4


@pytest.mark.parametrize(
    ("old_kind", "new_kind", "settings"),
    [
        ("mlp", "mlp", {"hidden": 3}),
        ("deep", "mlp", {}),
        ("deep", "deep", {"norm": "none"}),
        ("mlp", "deep", {"layers": 1, "norm": "layer", "activation": "relu"}),
        ("mlp", "deep", {"layers": 1, "norm": "none", "activation": "tanh"}),
        ("mlp", "linear", {}),
        ("conv", "mlp", {"hidden": 6}),
        ("conv", "linear", {}),
        ("mlp", "conv", {}),
        ("linear", "conv", {}),
        ("adapter", "linear", {}),
        ("adapter", "adapter", {"bottleneck": 2}),
        ("adapter", "conv", {}),
        ("deep", "adapter", None),
    ],
)
def test_fitting_brings_what_cannot_be_exact_nearer(
    old_kind: str, new_kind: str, settings: dict[str, object] | None
) -> None:
    old = form(old_kind)
    module = learned(old)
    if settings is None:
        with pytest.raises(NothingCorresponds, match="correct the features"):
            carried(old, module, form(new_kind))
        return
    new, buffer = form(new_kind, **settings), features()
    with torch.no_grad():
        wanted = torch.softmax(module(buffer) / 2, dim=1)

        def divergence(answers: Tensor) -> float:
            return float((wanted * (wanted / answers).log()).sum(dim=1).mean())

        def error(other: nn.Module) -> float:
            return divergence(torch.softmax(other(buffer) / 2, dim=1)) / divergence(wanted.mean(dim=0))

        plain, fitted = error(carried(old, module, new, UNFITTED).module), error(carried(old, module, new).module)
        random = error(new.build("new"))
    assert fitted <= plain + 1e-6
    assert fitted < 1.0  # nearer than the best constant, where random weights are not
    assert random > 1.0


def test_classes_go_by_their_names() -> None:
    old = form("mlp")
    module = learned(old)
    result = carried(old, module, form("mlp", num_classes=3), UNFITTED, classes=("cat", "dog", "ant"))
    items = features(20, seed=5)
    with torch.no_grad():
        new, was = result.module(items), module(items)
    assert torch.allclose(new[:, [0, 2]], was[:, [2, 0]], atol=1e-4)
    random = form("mlp", num_classes=3).build("new")
    assert torch.equal(result.module.get_parameter("output.weight")[1], random.get_parameter("output.weight")[1])
    assert result.report.classes_kept == ("cat", "ant")
    assert result.report.classes_new == ("dog",)
    assert result.report.classes_dropped == ("bee",)
    assert (result.report.layers[-1].mapped, result.report.layers[-1].new) == (2, 1)


def test_units_count_by_what_tells_the_new_classes_apart() -> None:
    old = form("mlp", hidden=2)
    module = learned(old)
    with torch.no_grad():
        # One unit knows ants from bees, a much louder one cats from both.
        module.get_parameter("output.weight").copy_(torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 9.0]]))
    new = form("mlp", hidden=1, num_classes=2)
    kept = carried(old, module, new, UNFITTED, classes=("ant", "bee")).module.get_parameter("hidden.weight")
    assert torch.allclose(kept[0], module.get_parameter("hidden.weight")[0], atol=1e-6)


def test_beta_weighs_what_is_mapped_against_the_random_initialisation() -> None:
    old, new = form("mlp"), form("mlp", hidden=4)
    module = learned(old)

    def weights(beta: float, **layers: float) -> torch.Tensor:
        config = TransferConfig(beta=beta, layer_beta=layers, refit=False)
        return flat_parameters(carried(old, module, new, config).module)

    random, mapped = flat_parameters(new.build("new")), weights(1.0)
    assert torch.equal(weights(0.0), random)
    assert torch.allclose(weights(0.3), 0.3 * mapped + 0.7 * random, atol=1e-6)
    by_layer = carried(old, module, new, TransferConfig(layer_beta={"hidden": 0.0}, refit=False)).module
    assert torch.equal(by_layer.get_parameter("hidden.weight"), new.build("new").get_parameter("hidden.weight"))
    assert not torch.equal(by_layer.get_parameter("output.weight"), new.build("new").get_parameter("output.weight"))


@pytest.mark.parametrize("similarity", ["role", "statistics", "correlation"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_report_counts_every_unit_once(kind: str, similarity: str) -> None:
    old = form(kind)
    sizes = {"mlp": {"hidden": 4}, "adapter": {"bottleneck": 9}, "conv": {"filters": 3}, "deep": {"hidden": 11}}
    new = form(kind, **sizes.get(kind, {}))
    report = carried(old, learned(old), new, TransferConfig(similarity=similarity)).report
    for layer in report.layers:
        assert layer.mapped + layer.merged + layer.dropped == layer.old_units
        assert layer.mapped + layer.duplicated + layer.new == layer.new_units
        assert 0 <= layer.importance_kept <= 1


def test_nothing_is_drawn_but_from_the_generator_and_the_old_expert_stays_as_it_was() -> None:
    old, new = form("mlp"), form("mlp", hidden=16)
    module = learned(old)
    before, state = flat_parameters(module), torch.get_rng_state()
    first, again, other = carried(old, module, new), carried(old, module, new), carried(old, module, new, seed=3)
    assert torch.equal(flat_parameters(first.module), flat_parameters(again.module))
    assert not torch.equal(flat_parameters(first.module), flat_parameters(other.module))
    assert torch.equal(flat_parameters(module), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_are_needed_only_where_the_score_is_of_them() -> None:
    old, new = form("mlp"), form("mlp", hidden=4)
    source, generator = Source.of(old, learned(old), CLASSES), torch.Generator().manual_seed(0)

    def without_labels(config: TransferConfig) -> nn.Module:
        return transfer(source, new, CLASSES, features(), None, config, seed="new", generator=generator).module

    assert difference(without_labels(TransferConfig(fisher="true")), learned(old)) < 1.0
    without_labels(TransferConfig(score="magnitude"))
    with pytest.raises(UndefinedFigure, match="labels"):
        without_labels(TransferConfig())


class Foreign(MlpArchitecture):
    """Of an installed package that does not say what its layers are for."""

    __slots__ = ()

    @property
    def anatomy(self) -> None:  # type: ignore[override]
        """Nothing."""
        return None


def test_a_clear_refusal_where_nothing_corresponds() -> None:
    old = form("mlp")
    module = learned(old)

    def to(new: Architecture, classes: tuple[str, ...] = CLASSES, **config: object) -> None:
        carried(old, module, new, TransferConfig(**config), classes=classes)  # type: ignore[arg-type]

    with pytest.raises(NothingCorresponds, match="none of the classes dog, elk"):
        to(form("mlp", num_classes=2), classes=("dog", "elk"))
    with pytest.raises(NothingCorresponds, match="reads 18 features, the new one 8"):
        to(form("mlp", feature_dim=8))
    with pytest.raises(NothingCorresponds, match="reads 18 features, the new one 8"):
        to(form("conv", height=2, width=2))
    with pytest.raises(NothingCorresponds, match="does not say what its layers are for"):
        to(Foreign(feature_dim=D, hidden=3, num_classes=3))
    with pytest.raises(SettingOutOfRange, match=r"hiden.*hidden, output"):
        to(form("mlp"), layer_beta={"hiden": 0.5})


@pytest.mark.parametrize(
    "settings",
    [{"beta": 1.1}, {"beta": -0.1}, {"layer_beta": {"hidden": 2.0}}, {"ridge": 0.0}, {"ridge": float("inf")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingOutOfRange):
        TransferConfig(**settings)  # type: ignore[arg-type]


def test_a_buffer_that_says_nothing_is_refused() -> None:
    old = form("mlp")
    source, generator = Source.of(old, learned(old), CLASSES), torch.Generator()

    def on(items: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...] = CLASSES) -> None:
        new = form("mlp", num_classes=len(classes))
        transfer(source, new, classes, items, labels, TransferConfig(), seed="", generator=generator)

    with pytest.raises(NothingToLearnFrom):
        on(torch.empty(0, D), torch.empty(0, dtype=torch.int64))
    with pytest.raises(NothingToLearnFrom, match="an item of cat"):
        on(features(4), torch.tensor([0, 1, 0, 1]), ("cat",))
    with pytest.raises(ShapeMismatch):
        on(torch.zeros(4, D + 1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeMismatch):
        on(features(4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SettingOutOfRange):
        on(features(4), torch.tensor([0, 1, 2, 3]))


def test_a_normalisation_that_goes_into_the_weights_of_a_later_layer_is_not_fitted_away() -> None:
    old = form("deep", activation="gelu", hidden=12, layers=3)
    module = learned(old)
    plain = form("deep", activation="gelu", norm="none", hidden=12, layers=3)
    fitted = carried(old, module, plain).module
    items = features(200, seed=9)
    with torch.no_grad():
        error = (fitted(items) - module(items)).square().mean() / module(items).var()
    assert float(error) < 0.03


def test_weights_so_large_that_nothing_is_finite_are_refused_by_name() -> None:
    old = form("mlp")
    module = learned(old)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1e30)
    with pytest.raises(NothingCorresponds, match="not finite"):
        carried(old, module, form("mlp", hidden=3))
