"""Redundant experts are found and made one; unused ones are told from those that are rare and needed."""

import json
from math import log

import pytest
import torch

from experts.architectures.mlp import MlpArchitecture
from experts.continual.handing_on import hand_on, judge_among, shared_classes
from experts.continual.merging import Items, merge_experts
from experts.continual.redundancy import (
    MergeVerdict,
    RedundancyConfig,
    judge_redundancy,
    judge_usage,
    mean_total_variation,
)
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.run import DistillationRun
from experts.errors import NothingToLearnFrom, SettingOutOfRange, UnknownClasses
from experts.generators import torch_generator
from experts.local import LocalExpert
from experts.router.specialization import Specialization

D = 6
FORM = MlpArchitecture(feature_dim=D, hidden=6, num_classes=2)


def features(seed: int, count: int = 60, centre: float = 0.0) -> torch.Tensor:
    return torch.randn(count, D, generator=torch_generator(seed, "features")) + centre


def labels_of(features_ND: torch.Tensor) -> tuple[str, ...]:
    return tuple("a" if value > 0 else "b" for value in (features_ND[:, 0] - features_ND[:, 1]).tolist())


def expert(uid: str, classes: tuple[str, ...] = ("a", "b"), *, centre: float = 0.0, wrong: bool = False) -> LocalExpert:
    """One that has learned to tell a from b around a centre."""
    items = features(int(uid), 300, centre)
    columns = torch.tensor([classes.index(name) for name in labels_of(items)])
    module = FORM.build(uid)
    data = DistillationData(features_ND=items, labels_N=1 - columns if wrong else columns)
    for _ in DistillationRun(module, data, DistillationConfig(steps=800, lr=0.3), torch_generator(0, uid)):
        pass
    return LocalExpert(classes, module)


def test_the_difference_is_the_mean_total_variation_whatever_the_order_of_columns() -> None:
    first, second = expert("1"), expert("2", ("b", "a"), wrong=True)
    asked = features(9, 7)
    total = 0.0
    for row in asked:
        p, q = (torch.softmax(each.module(row[None])[0], dim=0).tolist() for each in (first, second))
        by_name = [abs(p[first.classes.index(name)] - q[second.classes.index(name)]) for name in ("a", "b")]
        total += sum(by_name) / 2
    assert mean_total_variation(first, second, asked) == pytest.approx(total / 7, rel=1e-5)
    assert mean_total_variation(first, first, asked) == 0.0


def test_only_experts_of_the_same_classes_that_agree_are_redundant() -> None:
    experts = {"1": expert("1"), "2": expert("2", ("b", "a")), "3": expert("3", wrong=True)}
    experts["4"] = LocalExpert(("a", "c"), FORM.build("4"))
    verdicts = judge_redundancy(
        experts, {uid: features(int(uid)) for uid in experts}, RedundancyConfig(max_difference=0.2)
    )
    assert {verdict.uids: verdict.verdict for verdict in verdicts} == {
        ("1", "2"): "merge",
        ("1", "3"): "keep",
        ("2", "3"): "keep",
    }
    assert verdicts[0].classes == ("a", "b")
    assert json.loads(json.dumps(verdicts[0].to_dict()))["difference"] == verdicts[0].difference


def test_few_items_make_nobody_redundant() -> None:
    first = expert("1")
    verdict: MergeVerdict = judge_redundancy(
        {"1": first, "2": first}, {"1": features(1, 10), "2": features(2, 10)}, RedundancyConfig()
    )[0]
    assert (verdict.verdict, verdict.difference, verdict.num_items) == ("keep", 0.0, 20)


def test_experts_that_differ_in_classes_are_not_compared() -> None:
    with pytest.raises(UnknownClasses):
        mean_total_variation(expert("1"), LocalExpert(("a", "c"), FORM.build("4")), features(1))
    with pytest.raises(NothingToLearnFrom):
        mean_total_variation(expert("1"), expert("1"), features(1, 0))


def items_for(seed: int, centre: float) -> Items:
    learned, judged = features(seed, 200, centre), features(seed + 50, 80, centre)
    return Items(features_ND=learned, labels=labels_of(learned), held_out_ND=judged, held_out_labels=labels_of(judged))


def test_two_experts_become_one_that_is_as_good_on_the_items_of_both() -> None:
    pair = (expert("1", centre=1.0), expert("2", ("b", "a"), centre=-1.0))
    before = [each.module.state_dict()["output.weight"].clone() for each in pair]
    merged = merge_experts(
        pair,
        (items_for(5, 1.0), items_for(6, -1.0)),
        (0.2, 0.8),
        DistillationConfig(steps=600, lr=0.1),
        torch_generator(0, "merge"),
        tolerance=0.03,
    )
    assert merged.accepted, merged.to_dict()
    assert merged.expert.classes == ("b", "a")  # of the one that is asked more
    assert min(merged.accuracies_merged) > 0.9
    assert all(
        torch.equal(each.module.state_dict()["output.weight"], was) for each, was in zip(pair, before, strict=True)
    )


def test_a_merge_that_loses_what_one_knew_is_not_accepted() -> None:
    pair = (expert("1"), expert("2", wrong=True))
    contradiction = Items(
        features_ND=items_for(5, 0.0).features_ND,
        labels=tuple({"a": "b", "b": "a"}[name] for name in items_for(5, 0.0).labels),
        held_out_ND=items_for(5, 0.0).held_out_ND,
        held_out_labels=tuple({"a": "b", "b": "a"}[name] for name in items_for(5, 0.0).held_out_labels),
    )
    merged = merge_experts(
        pair, (items_for(5, 0.0), contradiction), (1, 1), DistillationConfig(steps=100), torch_generator(0, "merge")
    )
    assert not merged.accepted
    assert min(merged.accuracies_before) > 0.9


def tally(mass: dict[str, list[float]]) -> Specialization:
    """Gate mass by class, for experts p, q, r."""
    return Specialization(
        classes=tuple(sorted(mass)),
        uids=("p", "q", "r"),
        mass_CE=torch.tensor([mass[name] for name in sorted(mass)], dtype=torch.float64),
        num_samples_C=torch.full((len(mass),), 1000),
    )


CLASSES = {"p": ("a", "b", "rare"), "q": ("a", "b"), "r": ("a", "b", "rare")}


def test_an_unused_expert_of_no_class_in_particular_may_go() -> None:
    verdicts = judge_usage(
        tally({"a": [500, 495, 3], "b": [500, 495, 3], "rare": [2, 0, 0]}), CLASSES, RedundancyConfig()
    )
    assert [verdict.verdict for verdict in verdicts] == ["keep", "keep", "prune"]
    assert verdicts[2].usage == pytest.approx(6 / 1998)
    assert verdicts[2].entropy_nats == pytest.approx(log(2))


def test_a_specialist_for_a_rare_class_stays_unless_specialization_is_left_out() -> None:
    mass = tally({"a": [500, 490, 0], "b": [500, 490, 0], "rare": [1, 0, 10]})
    verdict = judge_usage(mass, CLASSES, RedundancyConfig())[2]
    assert (verdict.verdict, verdict.entropy_nats) == ("keep", 0.0)
    # pi KL = pi log(1 / p(rare)), since S is 0.
    assert verdict.information_nats == pytest.approx(10 / 1991 * log(1991 / 11))
    ablated = judge_usage(mass, CLASSES, RedundancyConfig(use_specialization=False))
    assert [each.verdict for each in ablated] == ["keep", "keep", "prune"]


def test_shares_of_information_sum_to_the_mutual_information() -> None:
    mass = tally({"a": [5, 1, 0], "b": [2, 9, 3], "rare": [0, 0, 0.5]})
    shares = [verdict.information_nats for verdict in judge_usage(mass, CLASSES, RedundancyConfig())]
    assert sum(shares) == pytest.approx(mass.mutual_information)


def test_the_only_expert_of_a_class_stays_however_little_it_is_asked() -> None:
    mass = tally({"a": [500, 500, 0], "b": [500, 500, 0]})
    verdict = judge_usage(mass, {"p": ("a",), "q": ("b",), "r": ("a", "zebra")}, RedundancyConfig())[2]
    assert (verdict.verdict, verdict.only_one_for, verdict.entropy_nats) == ("keep", ("zebra",), None)
    assert judge_usage(mass, CLASSES, RedundancyConfig())[2].verdict == "prune"


def test_an_expert_that_was_never_tallied_is_refused() -> None:
    with pytest.raises(UnknownClasses):
        judge_usage(tally({"a": [1, 1, 1]}), {"new": ("a",)}, RedundancyConfig())


@pytest.mark.parametrize(
    "field", [{"max_difference": 1.1}, {"min_items": 0}, {"max_usage": -0.1}, {"max_information_nats": -1.0}]
)
def test_settings_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(SettingOutOfRange):
        RedundancyConfig(**field)  # type: ignore[arg-type]


THIRD = MlpArchitecture(feature_dim=D, hidden=8, num_classes=3)


def three_of(features_ND: torch.Tensor) -> tuple[str, ...]:
    """ "c" where the last feature is high, otherwise as `labels_of`."""
    pairs = zip(labels_of(features_ND), features_ND[:, -1].tolist(), strict=True)
    return tuple("c" if last > 1.0 else name for name, last in pairs)


def of_three(seed: int) -> Items:
    learned, judged = features(seed, 400), features(seed + 50, 200)
    return Items(features_ND=learned, labels=three_of(learned), held_out_ND=judged, held_out_labels=three_of(judged))


def test_an_expert_of_more_classes_learns_what_one_of_two_knows_and_keeps_its_own() -> None:
    goes, items = expert("1"), of_three(5)
    module = THIRD.build("3")
    only_c = torch.tensor([2 if name == "c" else 0 for name in items.labels])  # tells a from b by nothing
    data = DistillationData(features_ND=items.features_ND, labels_N=only_c)
    for _ in DistillationRun(module, data, DistillationConfig(steps=600, lr=0.3), torch_generator(0, "3")):
        pass
    stays = LocalExpert(("a", "b", "c"), module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    done = hand_on(goes, stays, items, DistillationConfig(steps=900, lr=0.2), torch_generator(0, "on"))
    assert done.goes > 0.9
    assert done.stays_before < 0.7
    assert done.stays_after > 0.85
    assert done.after > done.before
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    # As counted one by one, among the two alone.
    pairs = [(row, name) for row, name in enumerate(items.held_out_labels) if name != "c"]
    logits = done.expert.module(items.held_out_ND)
    right = [("a", "b")[int(logits[row, :2].argmax())] == name for row, name in pairs]
    assert done.stays_after == pytest.approx(sum(right) / len(pairs))
    assert judge_among(("a", "b"), done.expert, items.held_out_ND, items.held_out_labels) == done.stays_after


def test_of_one_class_nothing_can_be_handed_on() -> None:
    assert shared_classes(("a", "b"), ("b", "c")) == ()
    assert shared_classes(("b", "a", "d"), ("a", "b", "c")) == ("a", "b")
    stays = LocalExpert(("b", "c", "d"), THIRD.build("3"))
    with pytest.raises(NothingToLearnFrom):
        hand_on(expert("1"), stays, of_three(5), DistillationConfig(steps=1), torch_generator(0, "on"))


def test_shares_of_information_sum_to_it_and_follow_from_the_entropies() -> None:
    mass = torch.rand(4, 3, generator=torch_generator(1, "mass"), dtype=torch.float64)
    mass[:, 2] = torch.tensor([0.0, 0.0, 0.0, 0.01])  # a rare class's own
    found = Specialization(
        classes=("a", "b", "c", "d"), uids=("1", "2", "3"), mass_CE=mass, num_samples_C=torch.full((4,), 9)
    )
    shares, prior = found.information_shares, mass.sum(dim=1) / mass.sum()
    assert float(shares.sum()) == pytest.approx(found.mutual_information)
    for column in range(3):
        of_class = found.class_distributions[:, column]
        expected = float(found.usage[column]) * (
            float(-(of_class * prior.log()).sum()) - float(found.entropies[column])
        )
        assert float(shares[column]) == pytest.approx(expected)
    nothing = Specialization(
        classes=("a",), uids=("1",), mass_CE=torch.zeros(1, 1).double(), num_samples_C=torch.ones(1).long()
    )
    assert nothing.information_shares.tolist() == [0.0]
