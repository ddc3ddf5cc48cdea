"""Reference gates: uniform, random, by hash, and by the experts' own energy."""

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.router.references import energy_gates, hash_gates, random_gates, uniform_gates

UIDS = ("s", "p", "r", "q")


def features(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def test_uniform_gates_are_all_alike() -> None:
    gates = uniform_gates(3, UIDS)
    assert gates.uids == ("p", "q", "r", "s")
    assert gates.weights_BE.tolist() == [[0.25] * 4] * 3


def test_random_gates_choose_one_expert_a_row_and_all_alike_in_the_long_run() -> None:
    gates = random_gates(4000, UIDS, torch.Generator().manual_seed(0))
    assert gates.weights_BE.sum(dim=1).eq(1.0).all()
    assert gates.weights_BE.amax(dim=1).eq(1.0).all()
    # Four deviations of a binomial with p = 1/4.
    assert (gates.weights_BE.mean(dim=0) - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    again = random_gates(4000, UIDS, torch.Generator().manual_seed(0))
    assert torch.equal(gates.weights_BE, again.weights_BE)


def test_hash_gates_depend_on_the_row_alone_and_spread() -> None:
    h = features(2000)
    gates = hash_gates(h, UIDS)
    shuffled = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(hash_gates(h[shuffled], UIDS).weights_BE, gates.weights_BE[shuffled])
    assert (gates.weights_BE.mean(dim=0) - 0.25).abs().max() < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_hash_gates_are_the_same_everywhere() -> None:
    h = torch.arange(24.0).reshape(8, 3)
    # Fixed by the definition, sha256 and the bytes of float32.
    assert hash_gates(h, UIDS).weights_BE.argmax(dim=1).tolist() == [3, 3, 3, 3, 3, 0, 2, 0]
    assert torch.equal(hash_gates(h.double(), UIDS).weights_BE, hash_gates(h, UIDS).weights_BE)
    assert torch.equal(hash_gates(-torch.zeros(1, 3), UIDS).weights_BE, hash_gates(torch.zeros(1, 3), UIDS).weights_BE)


def test_an_expert_that_is_added_moves_no_row_among_the_others() -> None:
    h = features(500)
    before, after = hash_gates(h, UIDS), hash_gates(h, (*UIDS, "new"))
    stayed = after.weights_BE[:, after.uids.index("new")] == 0
    assert 0 < int((~stayed).sum()) < 200
    others = [after.uids.index(uid) for uid in before.uids]
    assert torch.equal(after.weights_BE[stayed][:, others], before.weights_BE[stayed])


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), top_k=st.integers(1, 5), seed=st.integers(0, 999))
def test_energy_gates_follow_the_equation(sizes: list[int], top_k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = {uid: torch.randn(3, size, generator=generator) * 3 for uid, size in zip(UIDS, sizes, strict=False)}
    gates = energy_gates(logits, tau=0.7, top_k=top_k)
    for row, got in enumerate(gates.weights_BE.tolist()):
        scores = equations.energies({uid: own[row].tolist() for uid, own in logits.items()})
        wanted = equations.gate_weights(scores, {uid: [uid] for uid in logits}, tau=0.7, top_k=top_k)
        np.testing.assert_allclose(got, [wanted[uid] for uid in gates.uids], rtol=1e-4)


def test_no_experts_or_ill_formed_ones_are_refused() -> None:
    for uids in ((), ("p", "p")):
        with pytest.raises(SettingOutOfRange):
            uniform_gates(1, uids)
    with pytest.raises(ShapeMismatch):
        hash_gates(torch.zeros(3), UIDS)
    with pytest.raises(NothingToLearnFrom):
        energy_gates({})
    with pytest.raises(ShapeMismatch):
        energy_gates({"p": torch.zeros(3, 2), "q": torch.zeros(2, 2)})
