"""The small-net router: form and weights by uid, task loss, regulariser, replay, and what it learns."""

import dataclasses

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import mean_of
from experts.checkpoint import flat_parameters, load_flat, tensors_to_bytes
from experts.errors import (
    CorruptState,
    CorruptWeights,
    NothingToLearnFrom,
    SettingOutOfRange,
    ShapeMismatch,
    UnknownClasses,
)
from experts.local import LocalExpert, label_log_likelihoods
from experts.router.mlp import MlpRouter, MlpRouterConfig, MlpRouterRun, RouterData
from experts.router.regularisers import PROPOSAL, WEIGHTED
from experts.router.task_loss import mixture_cross_entropy

FAST = MlpRouterConfig(steps=60, batch_size=16, lr=0.02)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def router(*uids: str, seed: str = "mesh") -> MlpRouter:
    return MlpRouter(uids, feature_dim=4, hidden=5, seed=seed)


class Fixed(nn.Module):
    """Logits that are columns of the features."""

    def __init__(self, *columns: int) -> None:
        super().__init__()
        self.columns = list(columns)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return features_BD[:, self.columns]


EXPERTS = {
    "p": LocalExpert(("a", "b"), Fixed(0, 1)),
    "q": LocalExpert(("c",), Fixed(2)),
    "r": LocalExpert(("b", "c"), Fixed(1, 3)),
}


def items(num: int = 40, classes: str = "abc", seed: int = 0) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Features whose first columns tell the class."""
    columns = torch.randint(len(classes), (num,), generator=generator(seed))
    h = torch.randn(num, 4, generator=generator(seed + 1)) * 0.5
    labels = tuple(classes[column] for column in columns.tolist())
    for row, label in enumerate(labels):
        h[row, "abc".index(label)] += 3.0
    return h, labels


def data(num: int = 40, classes: str = "abc", seed: int = 0) -> RouterData:
    return RouterData.from_experts(*items(num, classes, seed), EXPERTS)


# Form and weights


def test_logits_follow_the_equation() -> None:
    net = router("q", "p")
    h = torch.randn(3, 4, generator=generator())
    state = {name.removeprefix("net."): value.tolist() for name, value in net.state_dict().items()}
    for row, got in zip(h.tolist(), net(h).tolist(), strict=True):
        hidden, output = [(state[f"{layer}.weight"], state[f"{layer}.bias"]) for layer in ("hidden", "output")]
        np.testing.assert_allclose(got, equations.router_logits(hidden, output, 0.3, row), rtol=1e-4, atol=1e-6)
    assert net.num_parameters == sum(value.numel() for value in net.parameters()) == 5 * 4 + 5 + 2 * 5 + 2
    assert net.flops_per_sample == 2 * (4 * 5 + 5 * 2)


def test_initial_weights_are_the_same_whatever_the_order_in_which_experts_came() -> None:
    grown = router("p").with_experts(["r", "p"]).with_experts(["q", "r", "p"])
    assert grown.uids == ("p", "q", "r")
    assert grown.to_bytes() == router("r", "q", "p").to_bytes()
    assert router("p", seed="other").digest() != router("p").digest()


def test_an_expert_that_comes_or_goes_changes_no_bit_of_the_others_logits() -> None:
    first = router("p", "r")
    train_on(first, {uid: EXPERTS[uid] for uid in ("p", "r")})
    h = torch.randn(6, 4, generator=generator())
    grown = first.with_experts(["p", "q", "r"])
    experts = {uid: expert.classes for uid, expert in EXPERTS.items()}
    assert torch.equal(first(h), first.with_experts(["r", "p"])(h))
    torch.testing.assert_close(grown(h)[:, [0, 2]], first(h), rtol=0, atol=1e-6)
    asked = {uid: experts[uid] for uid in ("p", "r")}
    torch.testing.assert_close(
        grown.gates(h, asked, top_k=2).weights_BE, first.gates(h, asked, top_k=2).weights_BE, rtol=0, atol=1e-6
    )


def train_on(net: MlpRouter, experts: dict[str, LocalExpert]) -> None:
    list(MlpRouterRun(net, RouterData.from_experts(*items(), experts), FAST, generator()))


def test_gates_leave_out_who_is_not_asked_for_and_give_none_to_the_unknown() -> None:
    net, h = router("p", "q"), torch.randn(5, 4, generator=generator())
    gates = net.gates(h, {"q": ("c",), "new": ("d",), "p": ("a",)}, tau=2.0, top_k=3)
    assert gates.uids == ("new", "p", "q")
    assert not gates.weights_BE[:, 0].any()
    torch.testing.assert_close(gates.weights_BE[:, 1:], torch.softmax(net(h) / 2.0, dim=1))
    assert not gates.weights_BE.requires_grad
    assert net.gates(h, {"q": ("c",)}).weights_BE.tolist() == [[1.0]] * 5


def test_it_is_averaged_like_an_expert() -> None:
    one, other = router("p", "q"), router("p", "q")
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    merged = router("p", "q")
    load_flat(merged, mean_of([flat_parameters(one), flat_parameters(other)]))
    torch.testing.assert_close(flat_parameters(merged), flat_parameters(one) + 0.5)


def test_bytes_hold_all_of_a_router_and_foreign_ones_are_refused() -> None:
    net = router("p", "q")
    back = MlpRouter.from_bytes(net.to_bytes())
    assert (back.uids, back.digest()) == (net.uids, net.digest())
    assert back.with_experts(["new", "p"]).digest() == net.with_experts(["p", "new"]).digest()
    for damaged in (b"", net.to_bytes()[:-8], net.to_bytes().replace(b'\\"p\\"', b'\\"q\\"')):
        with pytest.raises(CorruptWeights):
            MlpRouter.from_bytes(damaged)
    good: dict[str, object] = {"form": net.architecture.to_config(), "seed": "s", "uids": ["p", "q"]}
    foreign: list[dict[str, object]] = [{"uids": ["q", "p"]}, {"uids": ["p", "\ud800"]}, {"seed": "\ud800"}]
    MlpRouter.from_bytes(tensors_to_bytes(net.state_dict(), good))
    for changed in foreign:
        with pytest.raises(CorruptWeights):
            MlpRouter.from_bytes(tensors_to_bytes(net.state_dict(), good | changed))


def test_a_size_that_is_only_claimed_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net = router("p", "q")
    config = {"form": net.architecture.to_config() | {"feature_dim": 1_000_000}, "seed": "s", "uids": ["p", "q"]}
    data = tensors_to_bytes(net.state_dict(), config)
    monkeypatch.setattr(MlpArchitecture, "build", lambda *_: pytest.fail("a net was built"))
    with pytest.raises(CorruptWeights, match="weights for a form"):
        MlpRouter.from_bytes(data)


@pytest.mark.parametrize("uids", [(), ("p", "p")])
def test_no_expert_or_one_twice_is_refused(uids: tuple[str, ...]) -> None:
    with pytest.raises(SettingOutOfRange):
        router(*uids)


# Losses


@settings(deadline=None)
@given(
    rows=st.integers(1, 6), experts=st.integers(1, 5), tau=st.sampled_from([0.5, 1.0, 4.0]), seed=st.integers(0, 999)
)
def test_the_task_loss_follows_the_equation(rows: int, experts: int, tau: float, seed: int) -> None:
    logits = torch.randn(rows, experts, generator=generator(seed)) * 3
    likelihoods = torch.rand(rows, experts, generator=generator(seed + 1))
    # All but one expert of each row may not know the label.
    unknown = torch.rand(rows, experts, generator=generator(seed + 2)) < 0.4
    unknown[torch.arange(rows), torch.randint(experts, (rows,), generator=generator(seed))] = False
    likelihoods = likelihoods.masked_fill(unknown, 0.0).clamp_min(0) + 1e-3 * (~unknown)
    loss = mixture_cross_entropy(logits, likelihoods.log(), tau)
    wanted = equations.mixture_cross_entropy(logits.tolist(), likelihoods.tolist(), tau)
    assert float(loss) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_gradients_of_the_task_loss_are_right_and_finite_where_an_expert_does_not_know_the_label() -> None:
    logits = torch.randn(4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    likelihood = -torch.rand(4, 3, generator=generator(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, y: mixture_cross_entropy(x, y, 0.7), (logits, likelihood.requires_grad_())
    )
    known = likelihood.detach().clone()
    known[:2, 1:] = -torch.inf
    assert torch.autograd.gradcheck(lambda x: mixture_cross_entropy(x, known, 0.7), (logits,))


def test_where_one_expert_knows_the_label_the_task_loss_is_the_cross_entropy_of_its_gate() -> None:
    logits = torch.randn(5, 3, generator=generator(), requires_grad=True)
    responsible = torch.tensor([0, 2, 1, 1, 0])
    known = torch.full((5, 3), -torch.inf)
    known[torch.arange(5), responsible] = -0.3
    (ours,) = torch.autograd.grad(mixture_cross_entropy(logits, known, 1.0), logits)
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(logits, responsible), logits)
    torch.testing.assert_close(ours, theirs)


def test_an_expert_of_vanishing_probability_leaves_the_task_loss_finite() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = mixture_cross_entropy(logits, torch.tensor([[-500.0, -torch.inf]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(500.0 + np.log(2))
    assert torch.isfinite(logits.grad).all()


def test_likelihoods_are_the_experts_own() -> None:
    h, labels = items(12)
    uids, found = label_log_likelihoods(EXPERTS, h, labels)
    assert uids == ("p", "q", "r")
    for row, label in enumerate(labels):
        for column, uid in enumerate(uids):
            classes = EXPERTS[uid].classes
            if label in classes:
                p = equations.softmax(EXPERTS[uid].module(h[row : row + 1])[0].tolist())[classes.index(label)]
                assert float(found[row, column]) == pytest.approx(np.log(p), abs=1e-5)
            else:
                assert found[row, column] == -torch.inf
    with pytest.raises(UnknownClasses):
        label_log_likelihoods({"q": EXPERTS["q"]}, h, labels)


@pytest.mark.parametrize("regulariser", [None, WEIGHTED, PROPOSAL])
def test_the_loss_of_a_step_is_that_of_its_terms(regulariser: object) -> None:
    # Batches of one item each, so that there is nothing to draw.
    old = router("p", "r")
    net = old.with_experts(["p", "q", "r"])
    new, kept = data(1, "c", seed=3), data(1, "b", seed=5)
    config = MlpRouterConfig(batch_size=1, alpha=0.3, gamma=2.0, temperature=3.0, tau=0.8, regulariser=regulariser)
    run = MlpRouterRun(net, new, config, generator(), replay=kept, old=old)
    logits = [net(part.features_ND)[0].tolist() for part in (new, kept)]
    task = [
        equations.mixture_cross_entropy([row], part.log_likelihood_NE.exp().tolist(), 0.8)
        for row, part in zip(logits, (new, kept), strict=True)
    ]
    both = [logits[1][0], logits[1][2]]
    distill = equations.softened_kl([old(kept.features_ND)[0].tolist()], [both], 3.0)
    wanted = task[0] + 2.0 * (0.3 * task[1] + 0.7 * distill)
    if regulariser is not None:
        gates = [dict(zip("pqr", equations.softmax(row, 0.8), strict=True)) for row in logits]
        mass = equations.gate_mass(gates, ["c", "b"])
        weighted = regulariser is WEIGHTED
        factors = {"lambda_s": 0.1, "lambda_b": 0.1 if weighted else 0.0}
        wanted += equations.specialization_loss(mass, "pqr", weighted=weighted, **factors)
    assert run.step() == pytest.approx(wanted, abs=1e-5)


# What it learns


def test_it_learns_to_ask_who_answers_best() -> None:
    net = router("p", "q", "r")
    losses = list(MlpRouterRun(net, data(200), FAST, generator()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    gates = net.gates(items(200)[0], {uid: expert.classes for uid, expert in EXPERTS.items()})
    asked = [gates.uids[column] for column in gates.weights_BE.argmax(dim=1).tolist()]
    knows = [label in EXPERTS[uid].classes for uid, label in zip(asked, items(200)[1], strict=True)]
    assert np.mean(knows) > 0.95


def test_without_replay_it_forgets_and_with_it_less() -> None:
    experts = {uid: EXPERTS[uid] for uid in ("p", "q")}
    old = router("p", "q")
    first = RouterData.from_experts(*items(60, "ab"), experts)
    second = RouterData.from_experts(*items(60, "c", seed=9), experts)
    plain = dataclasses.replace(FAST, regulariser=None)
    list(MlpRouterRun(old, first, plain, generator()))

    def share_of_p(net: MlpRouter) -> float:
        return torch.softmax(net(first.features_ND), dim=1)[:, 0].mean().item()

    forgetful, mindful, taught = (old.with_experts(["p", "q"]) for _ in range(3))
    list(MlpRouterRun(forgetful, second, plain, generator()))
    list(MlpRouterRun(mindful, second, plain, generator(), replay=first))
    # The old generation alone: no label of a replayed item counts.
    by_old = dataclasses.replace(plain, alpha=0.0)
    list(MlpRouterRun(taught, second, by_old, generator(), replay=first, old=old))
    assert share_of_p(forgetful) < 0.8
    assert min(share_of_p(mindful), share_of_p(taught)) > 0.9


def test_a_continued_run_takes_the_steps_it_would_have_taken() -> None:
    nets = [router("p", "q", "r") for _ in range(2)]
    runs = [MlpRouterRun(net, data(), FAST, generator(seed), replay=data(7)) for seed, net in enumerate(nets)]
    for _ in range(9):
        runs[0].step()
    runs[1].load_bytes(runs[0].to_bytes())
    for _ in range(5):
        assert runs[0].step() == runs[1].step()
    assert nets[0].digest() == nets[1].digest()
    without = MlpRouterRun(nets[1], data(), FAST, generator())
    with pytest.raises(CorruptState):
        without.load_bytes(runs[0].to_bytes())


def test_items_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NothingToLearnFrom):
        RouterData.from_experts(torch.zeros(0, 4), (), EXPERTS)
    with pytest.raises(ShapeMismatch):
        MlpRouterRun(router("p", "q"), data(), FAST, generator())
    h, labels = items(3)
    with pytest.raises(ShapeMismatch):
        RouterData(features_ND=h, labels=labels, uids=("p",), log_likelihood_NE=torch.zeros(3, 2))
    ranges = {"steps": 0, "batch_size": 0, "lr": 0.0, "tau": 0.0, "temperature": -1.0, "gamma": -1.0, "alpha": 1.1}
    for name, value in ranges.items():
        with pytest.raises(SettingOutOfRange):
            dataclasses.replace(FAST, **{name: value})
