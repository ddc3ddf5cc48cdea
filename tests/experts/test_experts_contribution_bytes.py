"""Groups of contributions as bytes, from anyone, and contributions in eight bits."""

from collections.abc import Iterable
from functools import partial

import pytest
import torch
from contribution_examples import DIM, PEERS, SINGLES, bits, folding, replica
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import UnsafeStatistics
from experts.router.contributions import Contributions
from experts.router.groups import GroupSum
from experts.router.packing import pack, unpack
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.router.whitening import WhiteningReference
from experts.router.wire8 import decode8, encode8


def test_a_group_travels_as_bytes() -> None:
    group = folding(*SINGLES).group()
    assert group is not None
    again = GroupSum.from_bytes(group.to_bytes())
    assert again.to_bytes() == group.to_bytes()
    held = Contributions(DIM)
    held.merge_group(again)
    assert bits(held) == bits(replica(*SINGLES))


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), tail=st.binary(max_size=50))
def test_a_damaged_group_is_refused_or_can_be_summed(position: int, bit: int, tail: bytes) -> None:
    group = folding(*SINGLES[:3]).group()
    assert group is not None
    data = bytearray(group.to_bytes())
    data[position % len(data)] ^= 1 << bit
    for damaged in (bytes(data), tail):
        try:
            stats = GroupSum.from_bytes(damaged).total.statistics()
        except UnsafeStatistics:
            continue
        assert torch.isfinite(stats.scatter).all()


def changed(group: GroupSum, moment: int, members: Iterable[object] | None = None) -> bytes:
    tensors, config = unpack(group.to_bytes(), {"moment": torch.int64, "weighted": torch.int64})
    tensors["moment"][0, 0] = moment if moment else tensors["moment"][0, 0]
    if members is not None:
        config["members"] = list(members)
    return pack(tensors, config)


@pytest.mark.parametrize("moment", [2**62, -(2**63), -(2**20)])
def test_groups_of_impossible_numbers_are_refused(moment: int) -> None:
    group = folding(*SINGLES[:3]).group()
    assert group is not None
    GroupSum.from_bytes(changed(group, 0))
    with pytest.raises(UnsafeStatistics):
        GroupSum.from_bytes(changed(group, moment))


GOOD = ["P", "boots", 1, "a" * 64, 0.0]


@pytest.mark.parametrize(
    "members",
    [
        [],
        [GOOD, GOOD],
        [["P", "boots", 0, "a" * 64, 0.0]],
        [["P", "boots", True, "a" * 64, 0.0]],
        [["P", "boots", 1, "short", 0.0]],
        [["P", "boots", 1, "a" * 64, None]],
        [["P", "boots", 1, "a" * 64, 10**400]],
        [["P", "boots", 10**400, "a" * 64, 0.0]],
        [["P", "boots", 1, "a" * 64, float("nan")]],
        [["P\ud800", "boots", 1, "a" * 64, 0.0]],
        [["P", "", 1, "a" * 64, 0.0]],
        [["P", ["boots"], 1, "a" * 64, 0.0]],
        [["P", "boots", 1, "a" * 64]],
        [3],
    ],
)
def test_groups_of_impossible_members_are_refused(members: list[object]) -> None:
    group = folding(SINGLES[0]).group()
    assert group is not None
    GroupSum.from_bytes(changed(group, 0, [GOOD]))
    with pytest.raises(UnsafeStatistics):
        GroupSum.from_bytes(changed(group, 0, members))


def test_contributions_may_come_in_eight_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [ClassStatistics.from_features(torch.randn(30, DIM, generator=generator), ["a", "b"] * 15) for _ in PEERS]
    reference = WhiteningReference.from_statistics(parts[0])
    held = Contributions(DIM, max_bytes=0, decode=partial(decode8, reference=reference))
    for peer, part in zip(PEERS, parts, strict=True):
        held.add((peer, "t"), 1, encode8(part, reference))
    group = held.group()
    assert group is not None
    assert GroupSum.from_bytes(group.to_bytes()).total.counts == {"a": 60, "b": 60}
    torch.testing.assert_close(held.sum().scatter, sum_contributions(dict(zip(PEERS, parts, strict=True))).scatter,
                               rtol=0.05, atol=2.0)  # fmt: skip
