"""A mesh of simulated nodes, each with a replica of one expert: how it lives, and what is measured of it each round."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from simulate_network import Call, Clock, Network, NetworkConfig, Stream
from simulate_node import Node
from simulate_sizes import EXPERT, ORIGIN, WireSizes
from simulate_views import Mixing, Views

from experts.averaging import Averaged
from meshnode.averaging.settings import AveragerConfig
from protocol.identifiers import MeshId, digest_of
from protocol.messages import RoundId, RoundProposal
from protocol.records import ExpertAdvert, PeerRecord
from protocol.rounds import Abandon, AbandonReason
from protocol.spec import ExpertForm
from protocol.wiretypes import PeerId

__all__ = ["DhtTimes", "Mesh", "MeshConfig", "RoundSample", "Tally"]

BEGIN_S = 1_000_000.0
"""DHT time at which a simulation begins; a round begins then."""

AHEAD_S = 1.0
"""How long before a round the last one is measured: longer than any clock is wrong."""

CLOCK_SKEW_S = 0.02
"""Deviation of the nodes' clocks, which NTP keeps together."""

P = 32
"""Parameters that are really averaged: each member of the largest group reduces two."""

MESH = MeshId(digest_of(b"mesh"))
FORM = ExpertForm(kind="mlp", config={"hidden": 64})


@dataclass(frozen=True, kw_only=True, slots=True)
class DhtTimes:
    """How long the DHT takes, drawn from these."""

    lookup_s: Sequence[float] = (0.3,)
    store_s: Sequence[float] = (0.4,)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    num_nodes: int
    averaging: AveragerConfig = field(default_factory=AveragerConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    dht: DhtTimes = field(default_factory=DhtTimes)
    num_parameters: int = 100_000
    """Of the expert whose bytes are counted."""
    refresh_s: float = 5.0
    record_ttl_s: float = 60.0
    leaving_per_minute: float = 0.0
    """Share of the nodes that go within a minute."""
    silent_ratio: float = 0.5
    """Share of those that go without a word."""
    away_s: float = 60.0
    """Mean time until such a node is back."""
    training: float = 0.0
    """What a replica learns from one round to the next, relative to how far replicas were apart in the beginning."""
    partition_s: tuple[float, float] | None = None
    """From when until when the two halves cannot reach each other, in seconds from the beginning."""
    uneven_weights: bool = False
    """Whether replicas count for 1 to 100 samples, and not all the same."""
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What became of rounds, over all nodes."""

    begun: int = 0
    committed: int = 0
    sat_out: int = 0
    """Rounds that a node passed over as its last one was still under way."""
    attempts: Counter[str] = field(default_factory=Counter)
    """By how they ended."""
    lost_rounds: Counter[str] = field(default_factory=Counter)
    """By the reason of the last attempt."""

    outcomes: dict[tuple[RoundId, tuple[PeerId, ...]], set[bool]] = field(default_factory=dict)
    """Of every attempt by its group: whether members have committed it."""

    @property
    def divided(self) -> int:
        """Attempts that some members committed and others abandoned, for good as far as they knew."""
        return sum(len(outcomes) > 1 for outcomes in self.outcomes.values())

    def ended(self, proposal: RoundProposal, abandoned: Abandon | None) -> None:
        self.attempts["committed" if abandoned is None else str(abandoned.reason)] += 1
        if abandoned is None or not abandoned.doubtful:
            self.outcomes.setdefault((proposal.round, proposal.members), set()).add(abandoned is None)

    def lost(self, reason: AbandonReason) -> None:
        self.lost_rounds[str(reason)] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSample:
    """The mesh just before the next round."""

    disagreement: float
    """Mean squared distance of the living replicas from their mean, relative to the beginning."""
    drift: float
    """How far the weighted mean of all replicas is from where it was, in deviations of the beginning."""
    sent_bytes: int
    """By all nodes together, averaging alone."""
    staleness_s: tuple[float, float]
    """Median and 95th percentile of the age of the average that a living replica holds."""
    alive: int


class Mesh:
    """Runs rounds, renewals, look-ups and departures on one clock."""

    def __init__(self, config: MeshConfig) -> None:
        self.averaging = config.averaging
        self.record_ttl_s = config.record_ttl_s
        self.clock = Clock(BEGIN_S)
        self.network = Network(self.clock, config.network, config.seed)
        self.sizes = WireSizes(config.num_parameters, config.averaging.compression, config.averaging.agreement)
        averaging = config.averaging
        mixing = Mixing(averaging.method, averaging.group, averaging.period_s)
        self._sides = range(1 if config.partition_s is None else 2)
        self.views = Views(mixing, len(self._sides))
        self.tally = Tally()
        self.samples: list[RoundSample] = []
        self.known_s: list[float] = []
        """When each node has learned of the watched record, in the order of learning."""
        self._config = config
        self._generator = np.random.default_rng([config.seed, *b"mesh"])
        self._lookup = Stream(config.seed, "look-ups", lambda rng, num: rng.choice(config.dht.lookup_s, num))
        self._store = Stream(config.seed, "stores", lambda rng, num: rng.choice(config.dht.store_s, num))
        self._stays = Stream(config.seed, "churn", lambda rng, num: rng.exponential(size=num))
        self._make_nodes()
        self._watched: tuple[int, float] | None = None
        self._knowing: set[PeerId] = set()
        self.clock.at(BEGIN_S, self._begin_round, self._number(BEGIN_S) + 1)
        if config.partition_s is not None:
            begins_s, ends_s = config.partition_s
            self.clock.at(BEGIN_S + begins_s, self._part)
            self.clock.at(BEGIN_S + ends_s, self._heal)

    def _make_nodes(self) -> None:
        config, rng = self._config, self._generator
        self.initial = rng.standard_normal(P).astype(np.float32)
        self.vectors = self.initial + 0.1 * rng.standard_normal((config.num_nodes, P)).astype(np.float32)
        self.weights = rng.integers(1, 101, config.num_nodes) if config.uneven_weights else np.ones(config.num_nodes)
        self.nodes = [
            Node(self, number, self.vectors[number], float(self.weights[number])) for number in range(config.num_nodes)
        ]
        self.node_of = {node.peer_id: node for node in self.nodes}
        self._skew_s = (CLOCK_SKEW_S * rng.standard_normal(config.num_nodes)).tolist()
        self._first_mean, self._first_spread = self._spread(np.arange(config.num_nodes))
        third_s = config.record_ttl_s / 3
        for number, (renewed, read) in enumerate(rng.random((config.num_nodes, 2)).tolist()):
            node = self.nodes[number]
            node.side = number % len(self._sides)
            node.since = BEGIN_S - 1000.0
            node.base = self._number(BEGIN_S)
            node.reference, node.reference_digest = self.initial, digest_of(self.initial.tobytes())
            node.committed_s = BEGIN_S
            self.views.publish(self._record(node, BEGIN_S - third_s), BEGIN_S - third_s, self._sides)
            self.clock.after(renewed * third_s, node.renew, 0, 0)
            self.clock.after(read * config.refresh_s, node.refresh, 0)
            self._let_leave(node)
        for node in self.nodes:
            node.seen = config.num_nodes

    # --- what nodes ask of it ---

    def store(self, node: Node, *, leaving: bool = False) -> None:
        """Put the node's record of this moment into the DHT: it can be read a while later."""
        record = self._record(node, self.clock.now_s, leaving=leaving)
        self.clock.after(self._store.next(), self._stored, node, record)

    def _stored(self, node: Node, record: PeerRecord) -> None:
        sides = (node.side,) if self.network.partitioned else self._sides
        self.views.publish(record, self.clock.now_s, sides)

    def look_up(self, node: Node) -> None:
        """Read the records; what a look-up finds is as old as the middle of it."""
        took_s = self._lookup.next()
        self.clock.after(took_s, self._looked_up, node, node.life, self.clock.now_s + took_s / 2)

    def _looked_up(self, node: Node, life: int, read_s: float) -> None:
        if not node.alive or life != node.life:
            return
        node.seen = max(node.seen, self.views.readable(node.side, read_s))
        self.clock.after(self._config.refresh_s, node.refresh, life)
        if self._watched is not None and node.seen >= self._watched[0] and node.peer_id not in self._knowing:
            self._knowing.add(node.peer_id)
            self.known_s.append(self.clock.now_s - self._watched[1])

    def catch_up(self, node: Node, members: Sequence[PeerId]) -> None:
        """Let a replica that has missed rounds pull the newest of its group, and add what it has learned itself."""
        other = max((self.node_of[peer] for peer in members), key=lambda member: (member.base, member.peer_id))
        call = Call(node, other, "blobs", self.clock.now_s + 5.0)

        def serve(call: Call) -> None:
            content = other.vector.copy(), other.base
            self.network.answer(call, 4 * self._config.num_parameters, content)

        def answered(content: Any) -> None:
            if content is None or content[1] <= node.base:
                return
            mean, number = content
            delta = mean - (node.vector if node.reference is None else node.reference)
            node.apply(Averaged(mean=mean, delta=delta), number)

        self.network.ask(call, self.sizes.query, serve, answered)

    def _record(self, node: Node, now_s: float, *, leaving: bool = False) -> PeerRecord:
        advert = ExpertAdvert(
            uid=EXPERT,
            form=FORM,
            classes=("a", "b"),
            since=node.since,
            round=node.base,
            generation=1,
            weights=ORIGIN,
        )
        return PeerRecord(
            mesh_id=MESH,
            peer_id=node.peer_id,
            peer_name="node",
            issued_at=now_s,
            expires_at=now_s + self.record_ttl_s,
            leaving=leaving,
            experts=(advert,),
            contributions=None,
        )

    # --- rounds ---

    def run(self, num_rounds: int, *, until: float | None = None) -> "Mesh":
        """Let so many more rounds pass, or as many as it takes for replicas to disagree no more than that."""
        period_s = self.averaging.period_s
        for _ in range(num_rounds):
            number = len(self.samples)
            self.clock.run_until(BEGIN_S + (number + 2) * period_s - AHEAD_S)
            if until is not None and self.samples[-1].disagreement <= until:
                break
        return self

    def _number(self, moment_s: float) -> int:
        return int(moment_s // self.averaging.period_s)

    def _begin_round(self, number: int) -> None:
        """Called a little before; measures the last round first."""
        period_s = self.averaging.period_s
        start_s = number * period_s
        if self.clock.now_s < start_s - AHEAD_S:
            self.clock.at(start_s - AHEAD_S, self._begin_round, number)
            return
        if start_s > BEGIN_S + period_s:
            self.samples.append(self._sample())
        alive = [node for node in self.nodes if node.alive]
        if self._config.training:
            step = self._config.training * np.sqrt(self._first_spread / P)
            rows = [number for number, node in enumerate(self.nodes) if node.alive]
            self.vectors[rows] += (step * self._generator.standard_normal((len(rows), P))).astype(np.float32)
        self.views.begin(
            number, [(side, min((n.seen for n in alive if n.side == side), default=0)) for side in self._sides]
        )
        for node, skew_s in zip(self.nodes, self._skew_s, strict=True):
            if node.alive:
                self.clock.at(start_s + skew_s, node.run_round, number, node.life)
        self.clock.at(start_s + period_s - AHEAD_S, self._begin_round, number + 1)

    def _sample(self) -> RoundSample:
        rows = np.array([number for number, node in enumerate(self.nodes) if node.alive])
        mean, spread = self._spread(rows)
        ages_s = [self.clock.now_s - self.nodes[row].committed_s for row in rows]
        median_s, most_s = np.percentile(ages_s, [50, 95])
        return RoundSample(
            disagreement=spread / self._first_spread,
            drift=float(np.linalg.norm(mean - self._first_mean) / np.sqrt(self._first_spread)),
            sent_bytes=sum(node.sent.total() for node in self.nodes),
            staleness_s=(float(median_s), float(most_s)),
            alive=len(rows),
        )

    def _spread(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Weighted mean of these replicas, and their mean squared distance from it."""
        vectors, weights = self.vectors[rows].astype(np.float64), self.weights[rows]
        mean = weights @ vectors / weights.sum()
        return mean, float(((vectors - mean) ** 2).sum(axis=1).mean())

    # --- faults ---

    def watch_news(self) -> None:
        """Let the first node publish a new expert now, and note when each of the others knows of it."""
        node = self.nodes[0]
        record = self._record(node, self.clock.now_s)
        self.clock.after(self._store.next(), self._published_news, record, self.clock.now_s)

    def _published_news(self, record: PeerRecord, since_s: float) -> None:
        self.views.publish(record, self.clock.now_s, self._sides)
        self._watched = self.views.readable(0, self.clock.now_s), since_s

    def _let_leave(self, node: Node) -> None:
        if self._config.leaving_per_minute:
            stays_s = self._stays.next() * 60 / self._config.leaving_per_minute
            self.clock.after(stays_s, self._leave, node)

    def _leave(self, node: Node) -> None:
        if self._generator.random() < 1 - self._config.silent_ratio:
            node.publish(leaving=True)
        node.stop()
        self.clock.after(self._stays.next() * self._config.away_s, self._return, node)

    def _return(self, node: Node) -> None:
        node.alive = True
        node.since = self.clock.now_s
        node.publish()
        node.refresh(node.life)
        self._let_leave(node)

    def _part(self) -> None:
        self.network.partitioned = True

    def _heal(self) -> None:
        self.network.partitioned = False
        self.views.heal(self.clock.now_s)
