"""Who holds replicas of an expert in a round: every member works it out alone, from the DHT's time and the records.

There is no leader. Members that have seen different records compute different groups; they notice by what each
proposes before anything is exchanged.
"""

import math
from collections.abc import Iterable

from protocol.records import PeerRecord
from protocol.wiretypes import ExpertUid, PeerId

__all__ = ["replicas_of", "round_number", "round_start"]


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


def replicas_of(uid: ExpertUid, records: Iterable[PeerRecord], *, number: int, period_s: float) -> tuple[PeerId, ...]:
    """The peers that hold a replica of the expert ``uid`` in round ``number``, sorted.

    These are the ones that have advertised it since before the previous round began, so that by now everybody has
    read of them; that have not said as long ago that they leave; and whose lease still holds at the round's start. A
    peer that left or died shortly before is among them, and found silent: that costs less than views that differ.

    Args:
        uid: The expert.
        records: The newest record of each peer, the caller's own included.
        number: As from `round_number`.
        period_s: Seconds from one round to the next.
    """
    start_s, known_since_s = round_start(number, period_s), round_start(number - 1, period_s)
    return tuple(
        sorted(
            record.peer_id
            for record in records
            if not (record.leaving and record.issued_at <= known_since_s)
            and record.expires_at > start_s
            and any(advert.uid == uid and advert.since <= known_since_s for advert in record.experts)
        )
    )
