"""In a child: a node's part in averaging, put together as the daemon does it, without mesh, trainer and API.

Legend: P parameters.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import Averaged
from meshnode.advertiser import Advertiser
from meshnode.averaging.averager import Averager, Hooks
from meshnode.averaging.settings import AveragerConfig
from meshnode.compute import Compute
from meshnode.directory import Directory
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.pacing import Pacer
from meshnode.state.rows import Reached
from meshnode.state.state import State
from meshnode.transport.interface import Transport
from protocol.identifiers import Digest, ExpertUid, MeshId, digest_of, expert_uid
from protocol.limits import MAX_RECORD_TTL_S
from protocol.records import ExpertAdvert, PeerRecord
from protocol.signing import SigningKey

__all__ = ["FORMS", "Member", "classes_of"]

MESH = MeshId(digest_of(b"a mesh that averages"))

NUM_CLASSES = 10

FORMS: Mapping[int, MlpArchitecture] = {
    (dim + 1) * hidden + (hidden + 1) * NUM_CLASSES: MlpArchitecture(
        feature_dim=dim, hidden=hidden, num_classes=NUM_CLASSES
    )
    for dim, hidden in ((8, 4), (494, 198), (1344, 738), (3319, 3003))
}
"""By their parameters: 86, 10^5, 10^6 and 10^7."""


def classes_of(number: int) -> tuple[str, ...]:
    """What the expert of this number answers for."""
    return tuple(f"{number}.{column}" for column in range(NUM_CLASSES))


class Member:
    """A node that hosts replicas and averages them.

    Args:
        transport: Reaches the others; it is told to answer for this node.
        key: Of the node.
        home: Where its state lives; one that was used before is taken up again.
        config: How it averages; the same at all members.
        resources: End it.
    """

    def __init__(
        self, transport: Transport, key: SigningKey, home: Home, config: AveragerConfig, resources: ExitStack
    ) -> None:
        state = resources.enter_context(State(home))
        compute = Compute()
        resources.callback(compute.close)
        self.transport = transport
        self.host = self._hosting(state, compute)
        self._directory = Directory(transport, MESH, refresh_s=60.0, objection=lambda advert: None)
        hooks = Hooks(apply=self._apply, catch_up=self._catch_up, weight=lambda uid: 1.0, pacer=Pacer(None))
        self.averager = Averager(transport, self._directory, self.host, config, hooks)
        transport.serve(self.averager.answer)
        # As long as a lease may hold: none ends while something is measured.
        self._advertiser = Advertiser(
            transport, key, self._describe, ttl_s=MAX_RECORD_TTL_S, published=self._directory.take
        )
        self.began_to_commit_s: list[float] = []
        """When each commit of a round began, by `time.perf_counter`."""

    def _hosting(self, state: State, compute: Compute) -> ExpertHost:
        return ExpertHost(state, compute, now_s=self.transport.now_s)

    async def adopt(self, experts: int, parameters: int) -> None:
        """Host so many experts of this size, with their initial weights."""
        architecture = FORMS[parameters]
        for number in range(experts):
            classes = classes_of(number)
            uid = expert_uid(MESH, Digest(architecture.digest()), classes)
            await self.host.adopt(uid, classes, architecture, None)

    @property
    def uids(self) -> Sequence[ExpertUid]:
        """The experts hosted, in the order in which they were adopted."""
        return list(self.host.experts)

    async def announce(self) -> None:
        """Publish what is hosted. Raises AssertionError if no node of the DHT takes it."""
        assert await self._advertiser.publish()

    async def look(self) -> int:
        """Read everybody's records; returns how many peers there are."""
        await self._directory.refresh()
        return len(self._directory.records())

    async def learn(self, uid: ExpertUid, vector: np.ndarray) -> None:
        """Commit what a trainer would report, float32 ``(P,)``."""
        await self.host.checkpoint(uid, vector, deltas_applied=0, reached=Reached(run="run", steps=1))

    async def _apply(self, uid: ExpertUid, averaged: Averaged, number: int) -> None:
        self.began_to_commit_s.append(time.perf_counter())
        await self.host.apply_round(uid, averaged, number=number)

    async def _catch_up(self, uid: ExpertUid) -> None:
        """Nobody here has missed so many rounds; who had would stay out of the round."""

    def _describe(self, issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
        return PeerRecord(
            mesh_id=MESH,
            peer_id=self.transport.peer_id,
            peer_name="member",
            issued_at=issued_at,
            expires_at=expires_at,
            leaving=leaving,
            experts=tuple(sorted((expert.advert() for expert in self.host.experts.values()), key=_uid)),
            contributions=None,
        )


def _uid(advert: ExpertAdvert) -> ExpertUid:
    return advert.uid
