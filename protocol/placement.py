"""Which peer takes in a further replica of which expert: every peer works it out alone, from the live records.

There is no leader. Each expert puts the peers into an order of its own, by rendezvous (highest random weight) hashing
(Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Trans. Networking 6(1), 1998,
sec. III): a peer that comes or goes moves only what falls to it. The first ones that have room adopt what the mesh has
too few replicas of, one for each that is missing; those behind them wait, and act only where the ones before have not.
What there are too many of is given back from the other end of the same order, so what stays is what would be adopted.

Peers that have read the same records agree. Where they have not, each view lets as many adopt at once as it misses
replicas, and what was adopted too often is given back.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.codec import encode
from protocol.identifiers import ExpertUid, PeerId

__all__ = ["Adoption", "KeptExpert", "adoptions", "adopters", "surplus_turn", "turn_among", "wait_s"]

JITTER_SHARE: Final = 1 / 3
"""Of a slot. The rest of it lies between two turns at least, so that the later one sees what the earlier has done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptExpert:
    """A current expert of the mesh, as far as placement is concerned."""

    uid: ExpertUid
    num_bytes: int
    """Of its parameters."""
    holders: frozenset[PeerId]
    """Live peers that advertise it or another one of its family, and do not leave."""
    worth: float = 0.0
    """What it tells about classes, in any unit, as the peer that asks has measured it; 0 where it has not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """That a peer adopts an expert, sooner or later."""

    uid: ExpertUid
    num_holders: int
    """Replicas that there are."""
    turn: int
    """Number of turns to wait for others; 0 for a peer that is to adopt now."""


def adopters(expert: KeptExpert, rooms: Mapping[PeerId, int]) -> tuple[PeerId, ...]:
    """The peers that can adopt an expert, in the order in which they are to.

    Args:
        expert: What is to be adopted.
        rooms: Bytes of experts that each peer would still take in.
    """
    able = [peer_id for peer_id, room in rooms.items() if room >= expert.num_bytes and peer_id not in expert.holders]
    return _in_order(expert.uid, able)


def adoptions(
    me: PeerId, experts: Iterable[KeptExpert], rooms: Mapping[PeerId, int], *, replicas: int
) -> tuple[Adoption, ...]:
    """What the peer `me` is to adopt and when, the rarest expert first, among equally rare ones the worthiest.

    Worth orders what one peer does first and is nothing that peers have to agree on: whose turn it is does not depend
    on it. Equally worthy ones come by the weight of the peer.

    Args:
        me: A peer; without room in `rooms` it adopts nothing.
        experts: The mesh's current ones.
        rooms: Bytes of experts that each peer would still take in.
        replicas: How many the mesh is to keep of each, >= 1.
    """
    found = []
    for expert in experts:
        missing = replicas - len(expert.holders)
        if missing > 0 and me in (order := adopters(expert, rooms)):
            turn = max(0, order.index(me) + 1 - missing)
            adoption = Adoption(uid=expert.uid, num_holders=len(expert.holders), turn=turn)
            found.append(((adoption.num_holders, -expert.worth, _place(expert.uid, me)), adoption))
    return tuple(adoption for _, adoption in sorted(found, key=lambda one: one[0]))


def surplus_turn(me: PeerId, expert: KeptExpert, *, replicas: int) -> int | None:
    """Turns that the peer `me` waits before it gives its replica back; None where there are not too many, or it is none
    of those that hold one."""
    surplus = len(expert.holders) - replicas
    if surplus <= 0 or me not in expert.holders:
        return None
    order = _in_order(expert.uid, expert.holders)[::-1]
    return max(0, order.index(me) + 1 - surplus)


def turn_among(me: PeerId, about: ExpertUid, peers: Iterable[PeerId]) -> int | None:
    """Turns that the peer `me` waits before it does for all of these what has to do with an expert and is to be done
    once; None if it is none of them."""
    order = _in_order(about, peers)
    return order.index(me) if me in order else None


def wait_s(turn: int, *, slot_s: float, jitter: float) -> float:
    """How long a peer waits for its turn, in seconds.

    Args:
        turn: As in `Adoption`, or from `surplus_turn`.
        slot_s: Time of one turn: enough to adopt an expert, and for the others to read of it.
        jitter: A random number in [0, 1), so that of two peers that both take themselves for the next one mostly sees
            the other.
    """
    return slot_s * (turn + JITTER_SHARE * jitter)


def _in_order(uid: ExpertUid, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    return tuple(sorted(peers, key=lambda peer_id: _place(uid, peer_id)))


def _place(uid: ExpertUid, peer_id: PeerId) -> tuple[int, PeerId]:
    """What the order is by: the highest weight first."""
    weight = hashlib.sha256(encode(["modulemesh/place", uid, peer_id])).digest()
    return -int.from_bytes(weight, "big"), peer_id
