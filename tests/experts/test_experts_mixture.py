"""The standard mixture: grouped and dense output, the stacked model against its parts, and training end to end."""

import dataclasses

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.architectures.base import probabilities
from experts.architectures.mlp import MlpArchitecture
from experts.errors import NothingToLearnFrom, RowsUnanswered, SettingOutOfRange, ShapeMismatch, UnknownClasses
from experts.local import LocalExpert
from experts.mixture.config import MixtureConfig
from experts.mixture.model import Mixture
from experts.mixture.output import dense_output, mixture_output
from experts.mixture.run import MixtureRun, mixture_loss
from experts.router.gating import Gates, gate_logits
from experts.router.regularisers import PROPOSAL, WEIGHTED, RegulariserConfig

CLASSES = ("a", "b", "c", "d")
SMALL = MixtureConfig(num_experts=3, expert_hidden=4, router_hidden=5, steps=40, batch_size=32, lr=0.02, warmup_steps=5)

class_sets = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True)
forms = st.dictionaries(st.sampled_from(["p", "q", "r", "s"]), class_sets, min_size=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    """A module that notes how many rows each call asks it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[int] = []

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(features_BD))
        return self.module(features_BD)


def experts_of(classes: dict[str, list[str]], seed: int = 0) -> dict[str, LocalExpert]:
    return {
        uid: LocalExpert(
            tuple(names),
            Counting(MlpArchitecture(feature_dim=5, hidden=3, num_classes=len(names)).build(f"{seed}/{uid}")),
        )
        for uid, names in classes.items()
    }


def gates_of(uids: list[str], top_k: int, seed: int, rows: int = 7) -> Gates:
    logits = torch.randn(rows, len(uids), generator=generator(seed)) * 2
    return gate_logits(logits, sorted(uids), top_k=top_k)


def clusters(num: int, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Four separable classes in six features."""
    columns = torch.randint(4, (num,), generator=generator(seed))
    centres = torch.randn(4, 6, generator=generator(99)) * 4
    h = centres[columns] + torch.randn(num, 6, generator=generator(seed + 1))
    return h, [CLASSES[column] for column in columns.tolist()]


# Output


@settings(deadline=None)
@given(
    classes=forms,
    top_k=st.integers(1, 5),
    silent=st.sets(st.sampled_from("pqrs")),
    renormalise=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_grouped_output_is_the_sum_over_the_experts_that_are_there(
    classes: dict[str, list[str]], top_k: int, silent: set[str], renormalise: bool, seed: int
) -> None:
    experts = experts_of(classes, seed)
    gates = gates_of(list(experts), top_k, seed)
    h = torch.randn(7, 5, generator=generator(seed + 1)) * 3
    present = {uid: expert for uid, expert in experts.items() if uid not in silent}
    answers = []
    for row, weights in enumerate(gates.weights_BE.tolist()):
        asked = [uid for uid, weight in zip(gates.uids, weights, strict=True) if weight > 0 and uid in present]
        answer = {}
        for uid in asked:
            expert = experts[uid]
            answer[uid] = dict(
                zip(expert.classes, probabilities(expert.module, h[row : row + 1])[0].tolist(), strict=True)
            )
        answers.append(answer)
    if not all(answers):
        with pytest.raises(RowsUnanswered) as caught:
            mixture_output(present, gates, h, CLASSES, renormalise=renormalise)
        assert caught.value.rows == tuple(row for row, answer in enumerate(answers) if not answer)
        return
    combined = mixture_output(present, gates, h, CLASSES, renormalise=renormalise)
    for row, weights in enumerate(gates.weights_BE.tolist()):
        named = dict(zip(gates.uids, weights, strict=True))
        outputs, missing = equations.mixture(named, answers[row], CLASSES, renormalise=renormalise)
        np.testing.assert_allclose(combined.outputs_BC[row], outputs, atol=1e-6)
        assert float(combined.missing_mass_B[row]) == pytest.approx(missing, abs=1e-6)


@settings(deadline=None)
@given(classes=forms, top_k=st.integers(1, 5), seed=st.integers(0, 999))
def test_the_grouped_output_equals_the_dense_one(classes: dict[str, list[str]], top_k: int, seed: int) -> None:
    experts = experts_of(classes, seed)
    gates = gates_of(list(experts), top_k, seed)
    h = torch.randn(7, 5, generator=generator(seed + 1)) * 3
    grouped = mixture_output(experts, gates, h, CLASSES)
    torch.testing.assert_close(grouped.outputs_BC, dense_output(experts, gates, h, CLASSES), rtol=0, atol=1e-6)
    assert not grouped.missing_mass_B.any()


def test_each_expert_is_called_once_for_its_rows_and_not_at_all_without_any() -> None:
    experts = experts_of({"p": ["a"], "q": ["b"], "r": ["c"]})
    gates = Gates(("p", "q", "r"), torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.25, 0.0]]))
    mixture_output(experts, gates, torch.zeros(3, 5), CLASSES)
    assert {uid: expert.module.calls for uid, expert in experts.items()} == {"p": [1], "q": [3], "r": []}


def test_features_and_classes_that_do_not_fit_are_refused() -> None:
    experts, gates = experts_of({"p": ["a", "b"]}), Gates(("p",), torch.ones(2, 1))
    for output in (mixture_output, dense_output):
        with pytest.raises(ShapeMismatch):
            output(experts, gates, torch.zeros(3, 5), CLASSES)
        with pytest.raises(UnknownClasses):
            output(experts, gates, torch.zeros(2, 5), ("a",))


# Model


@pytest.mark.parametrize("num_experts", [1, 3])
def test_the_stacked_experts_are_those_that_are_handed_out(num_experts: int) -> None:
    mixture = Mixture(dataclasses.replace(SMALL, num_experts=num_experts), CLASSES, 6, seed="s")
    h = torch.randn(9, 6, generator=generator())
    logits_BE, log_p_BEC = mixture(h)
    experts = mixture.experts()
    assert tuple(experts) == mixture.uids == mixture.router.uids
    for column, expert in enumerate(experts.values()):
        torch.testing.assert_close(log_p_BEC[:, column].exp(), probabilities(expert.module, h))
    soft = mixture.gates(h, top_k=num_experts)
    torch.testing.assert_close(soft.weights_BE, torch.softmax(logits_BE, dim=1))
    dense_BC = torch.einsum("be,bec->bc", soft.weights_BE, log_p_BEC.exp())
    torch.testing.assert_close(mixture_output(experts, soft, h, mixture.classes).outputs_BC, dense_BC)


def test_parameters_and_flops_are_counted() -> None:
    mixture = Mixture(SMALL, CLASSES, 6, seed="s")
    assert mixture.num_parameters == sum(value.numel() for value in mixture.parameters())
    expert, router = 2 * (6 * 4 + 4 * 4), 2 * (6 * 5 + 5 * 3)
    assert mixture.flops_per_sample == router + expert
    both = Mixture(dataclasses.replace(SMALL, top_k=9), CLASSES, 6, seed="s")
    assert both.flops_per_sample == router + 3 * expert


def test_equal_seeds_give_equal_mixtures_and_no_two_experts_start_alike() -> None:
    one, same, other = (
        Mixture(SMALL, reversed_or_not, 6, seed=seed)
        for reversed_or_not, seed in (
            (CLASSES, "s"),
            (CLASSES[::-1], "s"),
            (CLASSES, "t"),
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.hidden_weight, other.hidden_weight)
    assert not torch.equal(one.hidden_weight[0], one.hidden_weight[1])


# Training


@settings(deadline=None)
@given(
    rows=st.integers(1, 6),
    experts=st.integers(1, 4),
    classes=st.integers(1, 4),
    regulariser=st.sampled_from([None, WEIGHTED, PROPOSAL]),
    seed=st.integers(0, 999),
)
def test_the_loss_follows_the_equation(
    rows: int, experts: int, classes: int, regulariser: RegulariserConfig | None, seed: int
) -> None:
    logits = torch.randn(rows, experts, generator=generator(seed)) * 2
    log_p = torch.log_softmax(torch.randn(rows, experts, classes, generator=generator(seed + 1)) * 2, dim=2)
    labels = torch.randint(classes, (rows,), generator=generator(seed + 2))
    loss = mixture_loss(logits, log_p, labels, tau=0.7, regulariser=regulariser)
    likelihoods = [[p[label] for p in row] for row, label in zip(log_p.exp().tolist(), labels.tolist(), strict=True)]
    wanted = equations.mixture_cross_entropy(logits.tolist(), likelihoods, 0.7)
    if regulariser is not None:
        uids = [str(number) for number in range(experts)]
        gates = [dict(zip(uids, equations.softmax(row, 0.7), strict=True)) for row in logits.tolist()]
        mass = equations.gate_mass(gates, [str(label) for label in labels.tolist()])
        factors = {"lambda_s": regulariser.lambda_s, "lambda_b": regulariser.lambda_b}
        wanted += equations.specialization_loss(mass, uids, weighted=regulariser.form == "weighted", **factors)
    assert float(loss) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("regulariser", [None, WEIGHTED, PROPOSAL])
def test_gradients_reach_router_and_experts_and_are_right(regulariser: RegulariserConfig | None) -> None:
    logits = torch.randn(5, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    scores = torch.randn(5, 3, 4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 3, 3, 0])

    def loss(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return mixture_loss(logits, torch.log_softmax(scores, dim=2), labels, tau=0.7, regulariser=regulariser)

    assert torch.autograd.gradcheck(loss, (logits, scores))
    assert all(bool(grad.any()) for grad in torch.autograd.grad(loss(logits, scores), (logits, scores)))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_training_learns_the_classes(num_experts: int) -> None:
    config = dataclasses.replace(SMALL, num_experts=num_experts, expert_hidden=8, steps=120)
    mixture = Mixture(config, CLASSES, 6, seed="s")
    h, labels = clusters(400)
    losses = list(MixtureRun(mixture, h, labels, generator()))
    assert len(losses) == config.steps
    test_h, test_labels = clusters(200, seed=7)
    output = mixture_output(mixture.experts(), mixture.gates(test_h), test_h, mixture.classes)
    assert np.mean([a == b for a, b in zip(mixture.predict(output.outputs_BC), test_labels, strict=True)]) > 0.9


@pytest.mark.parametrize("regulariser", [None, WEIGHTED, PROPOSAL])
@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
def test_lambda_rises_from_0_over_the_warmup_and_the_balance_is_there_at_once(
    regulariser: RegulariserConfig | None, warmup_steps: int
) -> None:
    config = dataclasses.replace(SMALL, regulariser=regulariser, warmup_steps=warmup_steps)
    mixture = Mixture(config, CLASSES, 6, seed="s")
    h, labels = clusters(60)
    columns = torch.tensor([CLASSES.index(label) for label in labels])
    run, draws = MixtureRun(mixture, h, labels, generator()), generator()
    for steps_taken in range(6):
        rows = torch.randint(60, (config.batch_size,), generator=draws)
        now = None
        if regulariser is not None:
            lambda_t = equations.warmed_up(regulariser.lambda_s, steps_taken, warmup_steps)
            now = dataclasses.replace(regulariser, lambda_s=lambda_t)
        with torch.no_grad():
            wanted = mixture_loss(*mixture(h[rows]), columns[rows], tau=config.tau, regulariser=now)
        assert run.step() == pytest.approx(float(wanted), rel=1e-6, abs=1e-7)


def test_a_continued_run_takes_the_steps_it_would_have_taken() -> None:
    h, labels = clusters(60)
    mixtures = [Mixture(SMALL, CLASSES, 6, seed=seed) for seed in ("s", "t")]
    runs = [MixtureRun(mixture, h, labels, generator(seed)) for seed, mixture in enumerate(mixtures)]
    for _ in range(4):
        runs[0].step()
    runs[1].load_bytes(runs[0].to_bytes())
    for _ in range(3):
        assert runs[0].step() == runs[1].step()
    assert runs[0].to_bytes() == runs[1].to_bytes()


def test_data_and_settings_that_do_not_fit_are_refused() -> None:
    mixture = Mixture(SMALL, CLASSES, 6, seed="s")
    with pytest.raises(NothingToLearnFrom):
        MixtureRun(mixture, torch.zeros(0, 6), [], generator())
    with pytest.raises(ShapeMismatch):
        MixtureRun(mixture, torch.zeros(2, 6), ["a"], generator())
    with pytest.raises(UnknownClasses):
        MixtureRun(mixture, torch.zeros(1, 6), ["z"], generator())
    with pytest.raises(NothingToLearnFrom):
        Mixture(SMALL, (), 6, seed="s")
    with pytest.raises(ShapeMismatch):
        mixture_loss(torch.zeros(2, 3), torch.zeros(2, 2, 4), torch.zeros(2).long(), tau=1.0, regulariser=None)
    ranges = {"num_experts": 0, "expert_hidden": 0, "router_hidden": 0, "steps": 0, "batch_size": 0, "top_k": 0}
    for name, value in {**ranges, "warmup_steps": -1, "lr": 0.0, "tau": -1.0, "input_scale": 11.0}.items():
        with pytest.raises(SettingOutOfRange):
            dataclasses.replace(SMALL, **{name: value})
