"""Contributions to try a replica with, and what a replica says of itself, to the last bit."""

import itertools
from functools import cache
from hashlib import sha256

import torch
from hypothesis import strategies as st

from experts.router.contributions import Contributions
from experts.router.groups import ContributionKey
from experts.router.statistics import ClassStatistics

DIM = 3
PEERS, TASKS, VERSIONS, CONTENTS = "PQRS", ("boots", "coats"), (1, 2, 3), (0, 1)

Item = tuple[ContributionKey, int, bytes]


def contribution(peer: str, task: str, version: int, content: int = 0) -> Item:
    """The same bytes for the same arguments; another content makes other bytes of the same version."""
    seed = int.from_bytes(sha256(f"{peer}{task}{version}{content}".encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    classes = ("a", "b", "c") if task == "boots" else ("c", "d")
    labels = [classes[i % len(classes)] for i in range(4 + seed % 5)]
    stats = ClassStatistics.from_features(torch.randn(len(labels), DIM, generator=generator) * 3 + 1, labels)
    return (peer, task), version, stats.to_bytes()


ALL = [contribution(*form) for form in itertools.product(PEERS, TASKS, VERSIONS, CONTENTS)]
DATA = {sha256(data).hexdigest(): data for _, _, data in ALL}
SINGLES = [contribution(peer, task, 1) for peer in PEERS for task in TASKS]
SUM_BYTES = 8 * DIM * (DIM + 1) + 4 * 16 * DIM
"""Of an exact sum over the four classes."""

items = st.sampled_from(ALL)

decode = cache(ClassStatistics.from_bytes)
"""The same statistics of the same bytes, as the holder asks, without reading them thousands of times."""


def replica(*added: Item, max_bytes: int | None = None) -> Contributions:
    held = Contributions(DIM, max_bytes=max_bytes, decode=decode)
    for key, version, data in added:
        held.add(key, version, data)
    return held


def folding(*added: Item) -> Contributions:
    """A replica that can hold nothing but its sum."""
    return replica(*added, max_bytes=0)


def copy_of(held: Contributions) -> Contributions:
    twin = Contributions(DIM, decode=decode)
    twin.merge(held)
    return twin


def merged(*replicas: Contributions) -> Contributions:
    result = copy_of(replicas[0])
    for other in replicas[1:]:
        result.merge(other)
    return result


def bits(held: Contributions) -> tuple[object, ...]:
    """The sum to the last bit; empty without one."""
    if not held.counted:
        return ()
    stats = held.sum()
    return dict(stats.counts), stats.stacked_means().numpy().tobytes(), stats.scatter.numpy().tobytes()


def state(held: Contributions) -> tuple[object, ...]:
    return held.counted, held.folded, held.dropped, bits(held)


def sum_of(held: Contributions) -> tuple[object, ...]:
    """What the sum has to be: that of the counted contributions, each added once to nothing."""
    fresh = Contributions(DIM, decode=decode)
    for member in held.counted.values():
        fresh.add(member.key, member.version, DATA[member.digest])
    return bits(fresh)


def keys_of(*chosen: Item) -> set[ContributionKey]:
    return {item[0] for item in chosen}


@st.composite
def histories(draw: st.DrawFn) -> Contributions:
    """A replica without a budget after any additions and drops."""
    held = Contributions(DIM, decode=decode)
    for item in draw(st.lists(items, max_size=6)):
        held.add(*item)
        if draw(st.integers(0, 4)) == 0:
            held.drop_peer(draw(st.sampled_from(PEERS)))
        if draw(st.integers(0, 4)) == 0:
            held.drop_task(draw(st.sampled_from(TASKS)))
    return held
