"""Who averages with whom: every member works it out alone, from the DHT's time and the records it has seen.

There is no leader. Members that have seen different records compute different groups; they notice by the
group's digest, which each proposes before anything is exchanged, and let that round pass.
"""

import math
from collections.abc import Iterable

from protocol.codec import encode
from protocol.identifiers import digest_of
from protocol.records import PeerRecord
from protocol.wiretypes import Digest, ExpertUid, PeerId

__all__ = ["group_digest", "group_of", "round_number", "round_start"]


def round_number(dht_time_s: float, period_s: float) -> int:
    """The number of the round that is on at this DHT time (Unix seconds): ``floor(time / period)``.

    Args:
        dht_time_s: The DHT's time, which all peers share within the tolerated clock skew.
        period_s: Seconds from one round to the next, above 0; the same at every member.
    """
    return math.floor(dht_time_s / period_s)


def round_start(number: int, period_s: float) -> float:
    """The DHT time (Unix seconds) at which round ``number`` begins."""
    return number * period_s


def group_of(uid: ExpertUid, records: Iterable[PeerRecord], *, number: int, period_s: float) -> tuple[PeerId, ...]:
    """The peers that average the expert ``uid`` in round ``number``, sorted.

    These are the ones that advertise it, are not leaving, and whose lease still holds at the round's start:
    a peer that died shortly before is in the group, and found silent.

    Args:
        uid: The expert.
        records: The newest record of each peer, the caller's own included.
        number: As from `round_number`.
        period_s: Seconds from one round to the next.
    """
    start_s = round_start(number, period_s)
    return tuple(
        sorted(
            record.peer_id
            for record in records
            if not record.leaving
            and record.expires_at > start_s
            and any(advert.uid == uid for advert in record.experts)
        )
    )


def group_digest(uid: ExpertUid, number: int, attempt: int, members: Iterable[PeerId]) -> Digest:
    """What members compare to know that they mean the same group and attempt; the order is no matter."""
    return digest_of(encode(["modulemesh/group", uid, number, attempt, sorted(members)]))
