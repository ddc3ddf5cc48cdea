"""Specialization: measures that follow their equations and merge, and regularisers with sound gradients."""

import json
import math
from collections.abc import Callable
from itertools import pairwise

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.errors import SettingOutOfRange, ShapeMismatch, UnknownClasses, UnsafeStatistics
from experts.router.gating import Gates, gate
from experts.router.regularisers import (
    PROPOSAL,
    RegulariserConfig,
    balance,
    entropy_sum,
    regularisation_loss,
    weighted_entropy,
)
from experts.router.specialization import Specialization, measure_specialization, merge_specializations

UIDS = ("p", "q", "r", "s", "t")
MEASURES = ("class_distributions", "entropies", "usage", "top_shares")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft_gates(seed: int, rows: int, experts: int = 5, spread: float = 3.0) -> Tensor:
    """Float64 ``(rows, experts)``, each row a distribution."""
    logits = torch.randn(rows, experts, generator=generator(seed), dtype=torch.float64) * spread
    return torch.softmax(logits, dim=1)


def labels_of(seed: int, rows: int, classes: str = "abcd") -> list[str]:
    return [classes[place] for place in torch.randint(len(classes), (rows,), generator=generator(seed))]


def split(*sizes: int) -> tuple[Tensor, Tensor]:
    """Hard gates and labels of one sample a class, where expert i works for ``sizes[i]`` classes."""
    expert_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.nn.functional.one_hot(expert_of, len(sizes)).double(), torch.arange(sum(sizes))


def of_split(*sizes: int) -> Specialization:
    gates, labels = split(*sizes)
    return measure_specialization(Gates(UIDS[: len(sizes)], gates), [str(label) for label in labels.tolist()])


def by_uid(gates: Tensor, uids: tuple[str, ...]) -> list[dict[str, float]]:
    return [dict(zip(uids, row, strict=True)) for row in gates.tolist()]


def gradient(logits: Tensor, labels: Tensor, config: RegulariserConfig) -> Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(regularisation_loss(logits.softmax(dim=1), labels, config), logits)
    return found


# Measures


@settings(deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 12), experts=st.integers(1, 5), top_k=st.integers(1, 5))
def test_measures_follow_their_equations(seed: int, rows: int, experts: int, top_k: int) -> None:
    weights, labels, uids = soft_gates(seed, rows, experts), labels_of(seed, rows), UIDS[:experts]
    kept = weights.topk(min(top_k, experts), dim=1).indices
    weights = torch.zeros_like(weights).scatter(1, kept, weights)
    measured = measure_specialization(Gates(uids, weights), labels)

    mass = equations.gate_mass(by_uid(weights, uids), labels)
    assert measured.classes == tuple(sorted(set(labels)))
    for column, uid in enumerate(uids):
        entropy = equations.specialization_entropy(mass, uid)
        assert measured.usage[column] == pytest.approx(equations.usage_share(mass, uid))
        assert measured.entropies[column] == pytest.approx(math.nan if entropy is None else entropy, nan_ok=True)
        for row, name in enumerate(measured.classes):
            assert measured.mass_CE[row, column] == pytest.approx(mass[name, uid])
    assert measured.mutual_information == pytest.approx(equations.mutual_information(mass), abs=1e-12)


def test_a_worked_example() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]])
    measured = measure_specialization(Gates(("p", "q"), weights), ["cat", "dog", "dog", "dog"])
    assert measured.mass_CE.tolist() == [[1.0, 0.0], [0.5, 2.5]]
    assert measured.num_samples_C.tolist() == [1, 3]
    assert measured.usage.tolist() == [0.375, 0.625]
    assert measured.max_usage == 0.625
    assert measured.entropies.tolist() == pytest.approx([-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3), 0.0])
    assert measured.top_shares.tolist() == pytest.approx([1.0, 2.5 / 3])
    assert measured.routed_ratio == 1.0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_measures_of_parts_merge_to_those_of_the_whole(seed: int, cuts: list[int]) -> None:
    weights, labels = soft_gates(seed, 30).float(), labels_of(seed, 30)
    edges = [0, *sorted(cuts), 30]
    parts = [measure_specialization(Gates(UIDS, weights[low:high]), labels[low:high]) for low, high in pairwise(edges)]
    whole, merged = measure_specialization(Gates(UIDS, weights), labels), merge_specializations(parts)
    assert (merged.classes, merged.uids) == (whole.classes, whole.uids)
    assert merged.num_samples_C.tolist() == whole.num_samples_C.tolist()
    for measure in MEASURES:
        torch.testing.assert_close(getattr(merged, measure), getattr(whole, measure), rtol=1e-12, atol=1e-12)
    assert merged.mutual_information == pytest.approx(whole.mutual_information, rel=1e-9)


def test_parts_may_differ_in_experts_and_classes() -> None:
    early = measure_specialization(Gates(("q",), torch.tensor([[1.0], [0.5]])), ["b", "c"])
    late = measure_specialization(Gates(("p", "q"), torch.tensor([[1.0, 0.0], [0.25, 0.75]])), ["a", "b"])
    for parts in ([early, late], [late, early]):
        merged = merge_specializations(parts)
        assert (merged.classes, merged.uids) == (("a", "b", "c"), ("p", "q"))
        assert merged.mass_CE.tolist() == [[1.0, 0.0], [0.25, 1.75], [0.0, 0.5]]
        assert merged.num_samples_C.tolist() == [1, 2, 1]


def test_mass_is_summed_in_float64() -> None:
    measured = measure_specialization(Gates(("p",), torch.full((200_000, 1), 0.1)), ["a"] * 200_000)
    assert measured.mass_CE.item() == pytest.approx(200_000 * torch.tensor(0.1).item(), rel=1e-12)


def test_merging_leaves_its_parts_as_they_were() -> None:
    part = of_split(2, 1)
    before = part.mass_CE.clone()
    merge_specializations([part, part])
    assert torch.equal(part.mass_CE, before)


def test_a_balanced_split_has_all_the_information_there_can_be() -> None:
    measured = of_split(2, 2, 2, 2, 2)
    assert measured.entropies.tolist() == pytest.approx([math.log(2)] * 5)
    assert measured.mutual_information == pytest.approx(math.log(5))
    assert measured.max_usage == pytest.approx(0.2)


def test_experts_that_all_see_the_same_mix_tell_nothing() -> None:
    weights = torch.tensor([[0.2, 0.8]]).expand(6, 2)
    measured = measure_specialization(Gates(("p", "q"), weights), list("abcabc"))
    assert measured.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert measured.mutual_information >= 0
    assert measured.entropies.tolist() == pytest.approx([math.log(3)] * 2)


def test_one_class_and_one_expert_leave_nothing_to_specialize() -> None:
    for measured in (of_split(1), of_split(1, 0)):
        assert f"{measured.entropies[0]:.2f}" == "0.00"
        assert measured.mutual_information == 0
        assert measured.max_usage == 1
    assert of_split(7).entropies.tolist() == pytest.approx([math.log(7)])
    assert of_split(7).mutual_information == pytest.approx(0, abs=1e-12)


def test_an_expert_without_mass_has_no_entropy_but_changes_nothing_else() -> None:
    measured, without = of_split(2, 2, 0), of_split(2, 2)
    assert math.isnan(measured.entropies[2])
    assert measured.class_distributions[:, 2].isnan().all()
    assert measured.usage.tolist() == [0.5, 0.5, 0.0]
    assert measured.mutual_information == without.mutual_information
    assert measured.to_dict()["entropy_nats"] == [*without.to_dict()["entropy_nats"], None]  # type: ignore[misc]


def test_a_class_without_a_sample_is_listed_and_changes_nothing() -> None:
    gates, labels = Gates(("p", "q"), soft_gates(3, 6, 2)), list("abcabc")
    measured, without = measure_specialization(gates, labels, "dabc"), measure_specialization(gates, labels)
    assert measured.classes == ("a", "b", "c", "d")
    assert measured.num_samples_C.tolist() == [2, 2, 2, 0]
    assert math.isnan(measured.top_shares[3])
    assert torch.equal(measured.entropies, without.entropies)
    assert measured.mutual_information == without.mutual_information


def test_gates_for_as_many_experts_as_there_are_route_everything_and_fewer_leave_some_out() -> None:
    scores = torch.randn(8, 3, generator=generator(0))
    experts = {"p": "a", "q": "b", "r": "c"}
    soft = measure_specialization(gate(scores, "abc", experts, top_k=3), list("abcabcab"))
    hard = measure_specialization(gate(scores, "abc", experts, top_k=1), list("abcabcab"))
    assert soft.routed_ratio == pytest.approx(1.0)
    assert hard.routed_ratio == pytest.approx(float(scores.softmax(dim=1).amax(dim=1).mean()))
    assert float(hard.usage.sum()) == pytest.approx(1.0)


def test_labels_that_no_expert_knows_send_no_mass() -> None:
    gates = gate(torch.zeros(2, 1), "a", {"p": "z"})
    measured = measure_specialization(gates, ["x", "y"])
    assert measured.num_samples_C.tolist() == [1, 1]
    assert measured.usage.tolist() == [0.0]
    assert measured.entropies.isnan().all()
    assert measured.top_shares.isnan().all()
    assert (measured.mutual_information, measured.routed_ratio, measured.max_usage) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("uids", [(), ("p", "q")])
def test_nothing_measured_is_nothing_and_adds_nothing(uids: tuple[str, ...]) -> None:
    nothing = measure_specialization(Gates(uids, torch.zeros(0, len(uids))), [])
    assert (nothing.mutual_information, nothing.routed_ratio, nothing.max_usage) == (0.0, 0.0, 0.0)
    assert nothing.mass_CE.shape == (0, len(uids))
    assert nothing.top_shares.tolist() == []
    assert merge_specializations([nothing, of_split(1, 1)]).mass_CE.tolist() == of_split(1, 1).mass_CE.tolist()
    assert merge_specializations([]).classes == ()
    unserved = measure_specialization(Gates((), torch.zeros(1, 0)), ["a"])
    assert unserved.top_shares.isnan().tolist() == [True]


def test_shares_too_small_to_multiply_still_have_their_information() -> None:
    measured = Specialization(
        classes=("a", "b"),
        uids=("p", "q"),
        mass_CE=torch.tensor([[1.0, 0.0], [0.0, 1e-200]], dtype=torch.float64),
        num_samples_C=torch.tensor([1, 1]),
    )
    assert measured.mutual_information == pytest.approx(0.0, abs=1e-12)


def test_the_table_is_json() -> None:
    table = json.loads(json.dumps(of_split(2, 1, 0).to_dict(), allow_nan=False))
    assert table == {
        "classes": ["0", "1", "2"],
        "experts": ["p", "q", "r"],
        "mass": [[1, 0, 0], [1, 0, 0], [0, 1, 0]],
        "num_samples": [1, 1, 1],
        "entropy_nats": [pytest.approx(math.log(2)), 0, None],
        "usage_ratio": [pytest.approx(2 / 3), pytest.approx(1 / 3), 0],
        "max_usage_ratio": pytest.approx(2 / 3),
        "top_share_ratio": [1, 1, 1],
        "mutual_information_nats": pytest.approx(math.log(3) - 2 / 3 * math.log(2)),
        "routed_ratio": 1,
    }


def test_gates_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        measure_specialization(Gates(("p",), torch.ones(2, 1)), ["a"])
    with pytest.raises(ShapeMismatch):
        measure_specialization(Gates(("p",), torch.ones(1, 2)), ["a"])
    with pytest.raises(UnknownClasses):
        measure_specialization(Gates(("p",), torch.ones(1, 1)), ["a"], ["b"])
    for weight in (math.nan, math.inf, -1.0):
        with pytest.raises(UnsafeStatistics):
            measure_specialization(Gates(("p",), torch.tensor([[weight]])), ["a"])
    with pytest.raises(ShapeMismatch):
        Specialization(classes=("a",), uids=(), mass_CE=torch.zeros(1, 0), num_samples_C=torch.zeros(2))


# Regularisers


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 12),
    experts=st.integers(1, 5),
    config=st.sampled_from(
        [RegulariserConfig(), PROPOSAL, RegulariserConfig(form="proposal", lambda_s=0.7, lambda_b=0.2)]
    ),
)
def test_losses_follow_their_equations(seed: int, rows: int, experts: int, config: RegulariserConfig) -> None:
    gates, labels, uids = soft_gates(seed, rows, experts), labels_of(seed, rows), UIDS[:experts]
    wanted = equations.specialization_loss(
        equations.gate_mass(by_uid(gates, uids), labels),
        uids,
        weighted=config.form == "weighted",
        lambda_s=config.lambda_s,
        lambda_b=config.lambda_b,
    )
    columns = torch.tensor(["abcd".index(label) for label in labels])
    assert float(regularisation_loss(gates, columns, config)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    one_hot = torch.nn.functional.one_hot(columns, 4)
    assert float(regularisation_loss(gates, one_hot, config)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_plain_sum_prefers_imbalance_and_the_default_does_not() -> None:
    imbalanced, balanced = split(6, 1, 1, 1, 1), split(2, 2, 2, 2, 2)
    assert float(entropy_sum(*imbalanced)) == pytest.approx(1.79, abs=0.005)
    assert float(entropy_sum(*balanced)) == pytest.approx(3.47, abs=0.005)
    assert float(weighted_entropy(*imbalanced)) == pytest.approx(5 * 0.6 * math.log(6))
    assert float(weighted_entropy(*balanced)) == pytest.approx(5 * math.log(2))
    assert regularisation_loss(*imbalanced, PROPOSAL) < regularisation_loss(*balanced, PROPOSAL)
    assert regularisation_loss(*imbalanced, RegulariserConfig()) > regularisation_loss(*balanced, RegulariserConfig())


def test_balance_is_least_where_all_are_used_alike() -> None:
    assert float(balance(split(2, 2, 2, 2)[0])) == pytest.approx(-4 * math.log(4))
    assert float(balance(split(5, 0, 0)[0])) == pytest.approx(0.0, abs=1e-12)


def test_the_default_is_what_the_measures_say() -> None:
    gates, labels = soft_gates(5, 40), labels_of(5, 40)
    measured = measure_specialization(Gates(UIDS, gates), labels)
    columns = torch.tensor(["abcd".index(label) for label in labels])
    of_classes = measured.num_samples_C / measured.num_samples_C.sum()
    wanted = 5 * (
        float(torch.special.entr(of_classes).sum())
        - measured.mutual_information
        - float(torch.special.entr(measured.usage).sum())
    )
    got = regularisation_loss(gates, columns, RegulariserConfig(lambda_s=1.0, lambda_b=1.0))
    assert float(got) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("config", [RegulariserConfig(), PROPOSAL])
@pytest.mark.parametrize(
    "column_logits",
    [(0.0, 0.0, 0.0), (0.0, -22.0, 1.0), (0.0, -26.0, 1.0), (0.0, -60.0, 1.0), (0.0, -800.0, 1.0)],
    ids=["plenty", "near zero", "near the cut", "below the cut", "zero"],
)
def test_gradients_are_those_of_the_value(config: RegulariserConfig, column_logits: tuple[float, ...]) -> None:
    logits = torch.randn(6, 3, generator=generator(1), dtype=torch.float64) + torch.tensor(column_logits)
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw: regularisation_loss(raw.softmax(dim=1), labels, config), logits, atol=1e-8, rtol=1e-5
    )


@pytest.mark.parametrize("config", [RegulariserConfig(), PROPOSAL])
def test_gradients_in_the_gates_themselves(config: RegulariserConfig) -> None:
    gates = soft_gates(2, 6, 3, spread=1.0).requires_grad_()
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 1]), 3).double()
    assert torch.autograd.gradcheck(lambda soft: regularisation_loss(soft, one_hot, config), gates)


@settings(deadline=None)
@given(
    low=st.floats(-120.0, 0.0, width=32),
    config=st.sampled_from([RegulariserConfig(), PROPOSAL]),
    seed=st.integers(0, 9),
)
def test_logits_get_finite_and_moderate_gradients_however_small_a_gate(
    low: float, config: RegulariserConfig, seed: int
) -> None:
    logits = torch.randn(8, 4, generator=generator(seed)) * 2
    logits[:, 0] += low
    logits[3] -= torch.tensor([0.0, -low, -low, 0.0])
    found = gradient(logits, torch.arange(8) % 3, config)
    assert found.isfinite().all()
    assert found.abs().max() < 10


def test_x_log_x_is_0_at_0_with_a_slope_that_ends() -> None:
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = balance(gates)
    (slope,) = torch.autograd.grad(value, gates)
    assert float(value.detach()) == 0
    # N_E / M (log 1e-12 - sum_i pi_i (log pi_i + 1)), from the quotient that makes shares of masses.
    assert slope[:, 1].tolist() == pytest.approx([math.log(1e-12) - 1.0] * 2)


@pytest.mark.parametrize(("specialize", "weight"), [(entropy_sum, 1.0), (weighted_entropy, 3 / 2)])
def test_an_unused_expert_has_no_entropy_and_no_pull_from_it(
    specialize: Callable[[Tensor, Tensor], Tensor], weight: float
) -> None:
    gates, labels = split(2, 2, 0)
    gates.requires_grad_()
    loss = specialize(gates, labels)
    (slope,) = torch.autograd.grad(loss, gates)
    # Only N_E knows of it.
    assert float(loss.detach()) == pytest.approx(weight * float(specialize(gates.detach()[:, :2], labels)))
    # What is left is what any growth of the total mass does, which is the same for every class.
    assert slope.isfinite().all()
    assert slope[:, 2].tolist() == pytest.approx(
        [-0.25 * weight * 2 * math.log(2) * (specialize is weighted_entropy)] * 4
    )


def test_a_batch_without_gate_mass_scores_0_and_pulls_nowhere() -> None:
    gates = torch.zeros(3, 2, requires_grad=True)
    for config in (RegulariserConfig(), PROPOSAL):
        loss = regularisation_loss(gates, torch.tensor([0, 1, 1]), config)
        (slope,) = torch.autograd.grad(loss, gates)
        assert float(loss.detach()) == 0
        assert not slope.any()
    assert float(regularisation_loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), RegulariserConfig())) == 0


def test_missing_mass_and_rows_without_any_change_no_share() -> None:
    gates, labels = soft_gates(4, 9), torch.arange(9) % 3
    padded = torch.cat([0.25 * gates, torch.zeros(2, 5)])
    padded_labels = torch.cat([labels, torch.tensor([0, 7])])
    for config in (RegulariserConfig(), PROPOSAL):
        whole = regularisation_loss(gates, labels, config)
        assert float(regularisation_loss(padded, padded_labels, config)) == pytest.approx(float(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    gates, labels = split(3, 1, 0)
    for form in ("weighted", "proposal"):
        config = RegulariserConfig(form=form)  # type: ignore[arg-type]
        loss = regularisation_loss(gates.to(dtype), labels, config)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(regularisation_loss(gates, labels, config)), rel=1e-6)


def test_autocast_does_not_take_the_precision_away() -> None:
    gates, labels = soft_gates(6, 32).float(), torch.nn.functional.one_hot(torch.arange(32) % 4)
    wanted = regularisation_loss(gates, labels, RegulariserConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regularisation_loss(gates, labels, RegulariserConfig()), wanted)


def test_the_default_leads_to_experts_that_tell_classes_apart_and_are_all_used() -> None:
    """And the plain sum, from the same start, does not come as far."""
    start = torch.randn(10, 5, generator=generator(0))
    labels, names = torch.arange(10), [str(label) for label in range(10)]
    found = {}
    for form, config in (("default", RegulariserConfig()), ("proposal", PROPOSAL)):
        logits = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(250):
            optimizer.zero_grad()
            regularisation_loss(logits.softmax(dim=1), labels, config).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found[form] = measure_specialization(Gates(UIDS, logits.detach().softmax(dim=1)), names)
    assert found["default"].mutual_information == pytest.approx(math.log(5), abs=0.02)
    assert found["default"].max_usage == pytest.approx(0.2, abs=0.01)
    assert found["proposal"].mutual_information < math.log(5) - 0.1
    assert found["proposal"].max_usage > 0.29


def test_what_is_no_batch_is_refused() -> None:
    config = RegulariserConfig()
    for gates_shape, labels_shape in (((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1, 1))):
        with pytest.raises(ShapeMismatch):
            regularisation_loss(torch.zeros(gates_shape), torch.zeros(labels_shape), config)
    with pytest.raises(ShapeMismatch):
        balance(torch.zeros(3))


@pytest.mark.parametrize(
    "fields", [{"form": "plain"}, {"lambda_s": -0.1}, {"lambda_b": math.nan}, {"lambda_b": math.inf}]
)
def test_settings_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SettingOutOfRange):
        RegulariserConfig(**fields)  # type: ignore[arg-type]
