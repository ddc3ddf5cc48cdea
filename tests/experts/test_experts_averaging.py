"""The mean of replicas, and applying it as a delta."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import add_delta, mean_of
from experts.checkpoint import flat_parameters, load_flat
from experts.errors import NothingToLearnFrom, ShapeMismatch

ARCHITECTURE = MlpArchitecture(feature_dim=2, hidden=2, num_classes=2)

values = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(1, 5).flatmap(lambda m: st.lists(st.lists(values, min_size=3, max_size=3), min_size=m, max_size=m)))
def test_the_mean_is_the_equation_in_plain_loops(replicas: list[list[float]]) -> None:
    expected = [sum(replica[i] for replica in replicas) / len(replicas) for i in range(3)]
    mean = mean_of([torch.tensor(replica) for replica in replicas])
    assert mean.dtype == torch.float32
    assert mean.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(st.lists(values, min_size=2, max_size=6), st.integers(1, 6))
def test_equal_replicas_average_to_themselves_exactly(replica: list[float], num_replicas: int) -> None:
    vector = torch.tensor(replica)
    assert torch.equal(mean_of([vector] * num_replicas), vector)


def test_a_large_group_is_summed_without_losing_small_values() -> None:
    # float32 sums would drop every 1 that is added to 2^24.
    vectors = [torch.tensor([2.0**24])] + [torch.tensor([1.0])] * 1023
    assert mean_of(vectors).item() == pytest.approx((2**24 + 1023) / 1024, rel=1e-7)


def test_no_replicas_have_no_mean() -> None:
    with pytest.raises(NothingToLearnFrom):
        mean_of([])


def test_replicas_of_different_length_are_refused_even_where_they_would_broadcast() -> None:
    with pytest.raises(ShapeMismatch) as caught:
        mean_of([torch.zeros(3), torch.zeros(1)])
    assert caught.value.expected == (3,)
    assert caught.value.got == (1,)


def test_steps_taken_during_a_round_survive_its_average() -> None:
    module = ARCHITECTURE.build("uid")
    sent = flat_parameters(module)
    average = mean_of([sent, sent + 1])
    step = torch.arange(12, dtype=torch.float32)
    load_flat(module, sent + step)
    add_delta(module, average - sent)
    torch.testing.assert_close(flat_parameters(module), sent + step + 0.5)


@pytest.mark.parametrize("shape", [(1,), (13,), (1, 12)])
def test_a_delta_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        add_delta(ARCHITECTURE.build("uid"), torch.zeros(shape))
