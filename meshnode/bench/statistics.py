"""From single requests to the figures of a run.

Requests due during the warm-up count nowhere, but for one thing: an answer that comes after it is work the mesh has
done after it, and counts as such in answers per second. At a mesh's limit many are still on their way by then.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshnode.bench.load import Load
from meshnode.bench.runner import Request

__all__ = ["PERCENTILES", "Interval", "Measured", "PeerShare", "Spread", "measure", "nearest_rank"]

PERCENTILES: Mapping[str, int] = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}
"""Those told, in thousandths: whole numbers, so that no rounding chooses the wrong rank."""

_INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_MOST_INTERVALS = 20
"""Of a run: enough to see a stall, and in each enough arrivals at a usual rate that chance does not look like one."""


def nearest_rank(ascending: Sequence[float], thousandths: int) -> float:
    """The smallest value that at least this share of all values does not exceed; one of them, never between two.

    Args:
        ascending: At least one value.
        thousandths: The share, in (0, 1000].
    """
    return ascending[-(-thousandths * len(ascending) // 1000) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """How some values lie, by nearest rank."""

    ascending: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of values in any order; of none, every figure is None."""
        return cls(tuple(sorted(values)))

    @property
    def count(self) -> int:
        return len(self.ascending)

    @property
    def figures(self) -> dict[str, float | None]:
        """Each of `PERCENTILES` by name, and ``max``."""
        if not self.ascending:
            return dict.fromkeys((*PERCENTILES, "max"))
        ranks = {name: nearest_rank(self.ascending, share) for name, share in PERCENTILES.items()}
        return {**ranks, "max": self.ascending[-1]}


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerShare:
    """What one peer did for the requests that were answered."""

    peer_id: str
    peer_name: str
    rows: int
    """Rows it answered, one for each expert that a row was sent to."""
    calls: int
    failures: int
    """Of `calls`; another replica answered instead, or the answer was partial."""
    call_ms: Spread
    """Of the calls that it answered, by the client's clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """What happened within a part of the run; seconds since the end of the warm-up."""

    from_s: float
    length_s: float
    offered: int
    """Requests that were due."""
    answered: int
    """Answers that came, to requests of the warm-up too."""
    failed: int
    not_sent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The figures of a run."""

    window_s: float
    """Within which requests were due: the load's duration, or less if the run was cut off."""
    arrived: int
    """Answers that came within the window, to whatever request."""
    offered: int
    """Requests that were due; each of them is in just one of the next four."""
    answered: int
    failures: Mapping[str, int]
    """Requests that failed, by error code, most frequent first."""
    not_sent: int
    """As many as allowed were outstanding when they were due."""
    cut_off: int
    """Under way when the run was interrupted."""
    partial: int
    """Of those answered: with gate mass missing."""
    warm_up: int
    """Requests due during the warm-up, which nothing else counts."""
    batch: int
    latency_ms: Spread
    """From when a request was due to its answer; of the answered ones."""
    asking_ms: Spread
    """Of that, waiting for peers; the rest is the client's own: its queue, trunk, gates and sum."""
    late_ms: Spread
    """From when a request was due until it was sent: this program's own share, or its machine's."""
    peers: tuple[PeerShare, ...]
    """By rows, most first."""
    intervals: tuple[Interval, ...]

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def answered_ratio(self) -> float | None:
        """Of what was offered and not cut off; None if that is nothing."""
        ended = self.offered - self.cut_off
        return self.answered / ended if ended else None

    @property
    def offered_per_s(self) -> float:
        return self.offered / self.window_s if self.window_s else 0.0

    @property
    def answered_per_s(self) -> float:
        """What the mesh did: answers that came within the window, by its length."""
        return self.arrived / self.window_s if self.window_s else 0.0

    @property
    def rows_per_s(self) -> float:
        """Images answered a second."""
        return self.batch * self.answered_per_s


def measure(requests: Sequence[Request], load: Load, *, ended_s: float) -> Measured:
    """The figures of a run.

    Args:
        requests: As the runner left them.
        load: What it followed.
        ended_s: When the last one ended or the run was cut off, since it began.
    """
    counted = [request for request in requests if request.due_s >= load.warm_up_s]
    answered = [request for request in counted if request.latency_ms is not None]
    window_s = min(load.duration_s, max(0.0, ended_s - load.warm_up_s))
    arrived_s = [request.ended_s for request in requests if request.ended_s is not None and request.error is None]
    failures = Counter(request.error for request in counted if request.error is not None)
    return Measured(
        window_s=window_s,
        arrived=sum(load.warm_up_s <= moment_s < load.warm_up_s + window_s for moment_s in arrived_s),
        offered=len(counted),
        answered=len(answered),
        failures=dict(failures.most_common()),
        not_sent=sum(request.sent_s is None for request in counted),
        cut_off=sum(request.sent_s is not None and request.ended_s is None for request in counted),
        partial=sum(request.is_partial for request in answered),
        warm_up=len(requests) - len(counted),
        batch=load.batch,
        latency_ms=Spread.of([ms for request in counted if (ms := request.latency_ms) is not None]),
        asking_ms=Spread.of([request.asking_ms for request in answered]),
        late_ms=Spread.of(
            [1e3 * (request.sent_s - request.due_s) for request in counted if request.sent_s is not None]
        ),
        peers=_peers(answered),
        intervals=_intervals(requests, load.warm_up_s, window_s),
    )


def _peers(answered: Sequence[Request]) -> tuple[PeerShare, ...]:
    calls = sorted((call for request in answered for call in request.calls), key=lambda call: call.peer_id)
    shares = []
    for peer_id, group in itertools.groupby(calls, key=lambda call: call.peer_id):
        own = list(group)
        good = [call for call in own if call.answered]
        shares.append(
            PeerShare(
                peer_id=peer_id,
                peer_name=own[-1].peer_name,
                rows=sum(call.rows for call in good),
                calls=len(own),
                failures=len(own) - len(good),
                call_ms=Spread.of([call.elapsed_ms for call in good]),
            )
        )
    return tuple(sorted(shares, key=lambda share: -share.rows))


def _intervals(requests: Sequence[Request], warm_up_s: float, window_s: float) -> tuple[Interval, ...]:
    """The window, and what its last answers took beyond it, in parts of one length but for the last."""
    moments = {kind: [moment_s - warm_up_s for moment_s in of_kind] for kind, of_kind in _moments(requests).items()}
    span_s = max(window_s, *(moment_s for of_kind in moments.values() for moment_s in of_kind), 0.0)
    length_s = next((length for length in _INTERVALS_S if span_s <= _MOST_INTERVALS * length), _INTERVALS_S[-1])
    # Rounded, so that the last one is at least half as long as the others: a rate over less says nothing.
    number = max(1, round(span_s / length_s))
    counts = {
        # What ended last ended at the end of the last interval, not after it.
        kind: Counter(min(number - 1, int(moment_s / length_s)) for moment_s in of_kind if moment_s >= 0)
        for kind, of_kind in moments.items()
    }
    return tuple(
        Interval(
            from_s=round(index * length_s, 6),
            length_s=length_s if index < number - 1 else round(span_s - index * length_s, 6),
            **{kind: of_kind[index] for kind, of_kind in counts.items()},
        )
        for index in range(number if span_s else 0)
    )


def _moments(requests: Sequence[Request]) -> Mapping[str, Sequence[float]]:
    """When what happened, by the names of `Interval`."""
    ended = [(request.ended_s, request.error) for request in requests if request.ended_s is not None]
    return {
        "offered": [request.due_s for request in requests],
        "answered": [moment_s for moment_s, error in ended if error is None],
        "failed": [moment_s for moment_s, error in ended if error is not None],
        "not_sent": [request.due_s for request in requests if request.sent_s is None],
    }
