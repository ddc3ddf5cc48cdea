"""How the benchmark of tidying places replicas: as a mesh does, one a peer with room, and whose turn it is."""

import random
import sys
from pathlib import Path

import pytest

from protocol.identifiers import PeerId, digest_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_tidy import _adopt

UIDS = [digest_of(b"expert %d" % number) for number in range(6)]
PEERS = [PeerId(f"Qm{'abcdefghij'[number] * 44}") for number in range(8)]


@pytest.mark.parametrize("seed", range(8))
def test_each_peer_with_room_takes_one_and_no_expert_gets_more_than_it_needs(seed: int) -> None:
    rng = random.Random(seed)
    holders = {uid: {rng.choice(PEERS)} for uid in UIDS}
    before = {uid: set(held) for uid, held in holders.items()}
    worth = {uid: rng.random() for uid in UIDS} if seed % 2 else {}
    _adopt(PEERS[:3], holders, worth)
    assert all(before[uid] <= held and len(held) <= 2 for uid, held in holders.items())
    took = [peer for uid, held in holders.items() for peer in held - before[uid]]
    assert sorted(took) == PEERS[:3]


def test_where_one_peer_alone_has_room_it_takes_the_worthiest_that_it_does_not_hold() -> None:
    for worthiest in UIDS[1:]:
        holders = {uid: {PEERS[1]} for uid in UIDS[1:]} | {UIDS[0]: {PEERS[0]}}
        _adopt(PEERS[:1], holders, {uid: 1.0 + (uid == worthiest) for uid in UIDS[1:]} | {UIDS[0]: 9.0})
        assert [uid for uid, held in holders.items() if len(held) == 2] == [worthiest]
