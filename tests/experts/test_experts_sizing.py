"""A spawned expert: its form within a budget, and its beginning by measurement."""

import pytest
import torch

from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.continual.sizing import DEFAULT_MAX_PARAMETERS, REFERENCE_PARAMETERS, choose_architecture
from experts.continual.starting import Nearest, Start, accuracy_of, choose_start
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.run import DistillationRun
from experts.errors import NothingToLearnFrom, SettingOutOfRange
from experts.generators import torch_generator
from experts.teachers.cnn import untrained_cnn

D = 12
ARCHITECTURE = MlpArchitecture(feature_dim=D, hidden=8, num_classes=2)


def test_the_reference_is_the_reference_task_model() -> None:
    network = untrained_cnn(tuple("0123456789"), channels=1, pixels=28, generator=torch_generator(0, "cnn"))
    assert sum(parameter.numel() for parameter in network.parameters()) == REFERENCE_PARAMETERS


@pytest.mark.parametrize(
    ("dim", "classes", "columns", "hidden"),
    [(640, 2, 2, 10), (640, 10, 1, 18), (640, 10, 10, 9), (2160, 2, 2, 3), (2160, 10, 1, 4)],
)
def test_sizes_on_the_trunks_in_use_stay_within_the_budget(dim: int, classes: int, columns: int, hidden: int) -> None:
    chosen = choose_architecture(dim, classes, router_columns=columns)
    assert isinstance(chosen, MlpArchitecture)
    assert chosen.hidden == hidden
    assert chosen.num_parameters + columns * (dim + 1) <= DEFAULT_MAX_PARAMETERS


@pytest.mark.parametrize("budget", range(30, 400, 7))
def test_no_choice_exceeds_its_budget_and_one_more_unit_would(budget: int) -> None:
    chosen = choose_architecture(10, 2, max_parameters=budget)
    assert chosen.num_parameters <= budget
    if isinstance(chosen, LinearArchitecture):
        assert MlpArchitecture(feature_dim=10, hidden=2, num_classes=2).num_parameters > budget
    elif isinstance(chosen, MlpArchitecture) and chosen.hidden < 10:
        assert MlpArchitecture(feature_dim=10, hidden=chosen.hidden + 1, num_classes=2).num_parameters > budget


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(SettingOutOfRange, match="22"):
        choose_architecture(10, 2, max_parameters=21)


def test_what_the_router_takes_is_not_left_for_the_expert() -> None:
    assert choose_architecture(10, 2, max_parameters=44, router_columns=2).num_parameters <= 22
    with pytest.raises(SettingOutOfRange, match="44 of a linear expert for 2 classes with 2 columns"):
        choose_architecture(10, 2, max_parameters=43, router_columns=2)


def items(seed: int, *, flipped: bool = False, count: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that one direction tells apart."""
    features = torch.randn(count, D, generator=torch_generator(seed, "items"))
    columns = (features[:, 0] + features[:, 1] > 0).long()
    return features, 1 - columns if flipped else columns


def nearest(classes: tuple[str, ...] = ("ant", "bee"), *, steps: int = 600) -> Nearest:
    module = ARCHITECTURE.build("nearest")
    data = DistillationData(features_ND=items(0, count=400)[0], labels_N=items(0, count=400)[1])
    for _ in DistillationRun(module, data, DistillationConfig(steps=steps, lr=0.3), torch_generator(0, "b")):
        pass
    return Nearest(uid="old", architecture=ARCHITECTURE, module=module, classes=classes)


def started(classes: tuple[str, ...], source: Nearest | None, *, flipped: bool = False, steps: int = 5) -> Start:
    features, columns = items(1, flipped=flipped)
    return choose_start(
        ARCHITECTURE,
        classes,
        source,
        DistillationData(features_ND=features, labels_N=columns),
        items(2, flipped=flipped),
        DistillationConfig(steps=steps),
        seed="new",
        generator=lambda purpose: torch_generator(3, purpose),
    )


def test_the_same_classes_elsewhere_begin_where_the_nearest_expert_is() -> None:
    start = started(("ant", "bee"), nearest())
    evidence = start.evidence
    assert (evidence.chosen, evidence.source, evidence.steps, evidence.num_items) == ("transferred", "old", 5, 80)
    assert evidence.accuracy_transferred is not None
    assert evidence.accuracy_transferred > evidence.accuracy_random
    # No step has been taken: the module is what was carried over.
    assert accuracy_of(start.module, *items(2)) > 0.9
    assert "better" in evidence.reason


@pytest.mark.parametrize("flipped", [False, True])
def test_other_classes_begin_as_those_they_resemble(flipped: bool) -> None:
    start = started(("cat", "dog"), nearest(), flipped=flipped)
    assert start.evidence.chosen == "transferred"
    assert accuracy_of(start.module, *items(2, flipped=flipped)) > 0.9


def test_an_expert_that_knows_the_opposite_is_left_alone() -> None:
    start = started(("ant", "bee"), nearest(), flipped=True)
    evidence = start.evidence
    assert evidence.chosen == "random"
    assert evidence.accuracy_transferred is not None
    assert evidence.accuracy_transferred <= evidence.accuracy_random
    assert torch.equal(
        start.module.get_parameter("hidden.weight"), ARCHITECTURE.build("new").get_parameter("hidden.weight")
    )


def test_without_an_expert_to_begin_from_it_is_random_and_says_so() -> None:
    evidence = started(("ant", "bee"), None).evidence
    assert (evidence.chosen, evidence.source, evidence.accuracy_transferred) == ("random", None, None)


class Opaque(MlpArchitecture):
    """One that does not say what its layers are for."""

    __slots__ = ()

    @property
    def anatomy(self) -> None:
        return None


def test_an_expert_of_unknown_anatomy_is_not_carried_over() -> None:
    form = Opaque(feature_dim=D, hidden=8, num_classes=2)
    other = Nearest(uid="old", architecture=form, module=form.build("x"), classes=("ant", "bee"))
    evidence = started(("ant", "bee"), other).evidence
    assert (evidence.chosen, evidence.accuracy_transferred) == ("random", None)
    assert "nothing is carried over from old" in evidence.reason


def test_a_trial_needs_labels_and_items_to_judge_by() -> None:
    features, columns = items(1)
    for data, held_out in (
        (DistillationData(features_ND=features, labels_N=columns), (features[:0], columns[:0])),
        (DistillationData(features_ND=features, teacher_logits_NC=torch.randn(80, 2)), (features, columns)),
    ):
        with pytest.raises(NothingToLearnFrom):
            choose_start(
                ARCHITECTURE,
                ("ant", "bee"),
                None,
                data,
                held_out,
                DistillationConfig(steps=1),
                seed="new",
                generator=lambda purpose: torch_generator(3, purpose),
            )
