"""The router of a node: its own and its peers' statistics, kept apart by contributor, summed and solved anew.

Each contribution is signed by its contributor, so that any peer can pass it on. It counts once however often it
arrives, and the sum is exact, so all peers that hold the same set hold the same router, in whatever order it came.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from experts.errors import NotPositiveDefinite, UnsafeStatistics
from experts.router.exact import ExactSum
from experts.router.ridge import RidgeRouter, RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics
from meshnode.blobs import BlobPuller
from meshnode.compute import Compute
from meshnode.directory import Directory
from meshnode.logs import get_logger
from meshnode.state.state import State
from protocol.errors import ModuleMeshError, RecordRefused
from protocol.identifiers import Digest, MeshId, PeerId
from protocol.limits import MAX_CONTRIBUTION_INDEX_BYTES
from protocol.records import (
    RouterContribution,
    decode_contribution_index,
    encode_contribution_index,
    open_contribution,
    seal_contribution,
)
from protocol.signing import SigningKey

__all__ = ["Contributions", "RouterView"]

log = get_logger(__name__)

ContributionKey = tuple[str, str]
"""(contributor, task). Of one key the highest version counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterView:
    """A solved router and what went into it."""

    router: RidgeRouter
    contributions: int
    samples: Mapping[str, int]
    """Training samples per class, over all contributions."""


class Contributions:
    """Holds this mesh's router contributions and solves the router from them.

    Args:
        state: Where contributions and their statistics are kept.
        compute: Where the router is solved.
        mesh_id: Contributions to any other mesh are refused: their features mean something else.
        config: How the router is solved.
        feature_dim: D of the mesh's trunk; statistics of any other can never be summed with these.
        fingerprint: Of the mesh's features, as `statistics_fingerprint` names them; nor can those of any other.
    """

    def __init__(
        self,
        state: State,
        compute: Compute,
        mesh_id: MeshId,
        config: RouterConfig,
        *,
        feature_dim: int,
        fingerprint: str,
    ) -> None:
        self._state = state
        self._compute = compute
        self._mesh_id = mesh_id
        self._config = config
        self._held: dict[ContributionKey, tuple[RouterContribution, bytes]] = {}
        self._sum = ExactSum(feature_dim, fingerprint=fingerprint)
        """Of what is held, whose bytes stay on the disk; touched in the compute thread only."""
        self._taken: dict[PeerId, Digest] = {}
        self._adding = asyncio.Lock()
        self._solving = asyncio.Lock()
        self._stale = True
        self.view: RouterView | None = None
        """The router as of now; None before the first contribution."""
        self.index: Digest | None = None
        """Digest of the blob that lists what is held; None while nothing is."""
        self.changed = asyncio.Event()
        """Set whenever `index` has become another; whoever waits clears it first."""

    async def load(self, *, now_s: float) -> None:
        """Take up what the state holds."""
        for sealed in self._state.contributions():
            try:
                contribution = open_contribution(sealed, mesh_id=self._mesh_id, now_s=now_s)
                await self._hold(contribution, sealed, self._state.blobs.get(contribution.statistics))
            except (RecordRefused, UnsafeStatistics) as refusal:
                log.warning(
                    "a stored contribution is left out", reason=str(refusal)
                )  # signed before the clock was set back
        await self._publish_index()
        await self.solve()

    def version_of(self, peer_id: PeerId, task: str) -> int:
        """The version held of a contribution; 0 when none is."""
        held = self._held.get((peer_id, task))
        return held[0].version if held else 0

    def own_samples(self, peer_id: PeerId, classes: Collection[str]) -> int:
        """Samples of these classes that a peer has contributed the statistics of, over all its tasks."""
        held = (contribution for contribution, _ in self._held.values() if contribution.peer_id == peer_id)
        return sum(number for of in held for name, number in of.samples.items() if name in classes)

    async def contribute(self, key: SigningKey, task: str, statistics: bytes, *, issued_at: float) -> None:
        """Sign and hold this node's own statistics of one task, replacing an older version of the same."""
        digest = await asyncio.to_thread(self._state.blobs.put, statistics)
        held = self._held.get((key.peer_id, task))
        if held and held[0].statistics == digest:
            return  # learned again from the same data, as after a restart
        contribution = RouterContribution(
            mesh_id=self._mesh_id,
            peer_id=key.peer_id,
            task=task,
            version=self.version_of(key.peer_id, task) + 1,
            statistics=digest,
            samples=dict(ClassStatistics.from_bytes(statistics).counts),
            issued_at=issued_at,
        )
        await self._add(contribution, seal_contribution(contribution, key), statistics)

    async def pull(self, puller: BlobPuller, directory: Directory) -> None:
        """Fetch what peers hold and we lack. A peer that fails is left for the next time."""
        for record in directory.records():
            index = record.contributions
            if record.peer_id == puller.transport.peer_id or index is None or index == self.index:
                continue
            try:
                await self._pull_from(puller, record.peer_id, index)
            except (ModuleMeshError, UnsafeStatistics) as failure:
                log.info("contributions not taken", peer=record.peer_name, reason=str(failure))

    async def _pull_from(self, puller: BlobPuller, peer_id: PeerId, index: Digest) -> None:
        if self._taken.get(peer_id) == index:
            return
        listing = await puller.pull(index, [peer_id], limit_bytes=MAX_CONTRIBUTION_INDEX_BYTES)
        for sealed in decode_contribution_index(listing):
            contribution = open_contribution(sealed, mesh_id=self._mesh_id, now_s=puller.transport.now_s())
            if contribution.version <= self.version_of(contribution.peer_id, contribution.task):
                continue
            statistics = await puller.pull(contribution.statistics, [peer_id])
            await self._add(contribution, sealed, statistics)
        self._taken[peer_id] = index

    async def _add(self, contribution: RouterContribution, sealed: bytes, statistics: bytes) -> None:
        # One at a time: the trainer's own and those of peers come from different tasks, and the index lists all.
        async with self._adding:
            if contribution.version <= self.version_of(contribution.peer_id, contribution.task):
                return
            await self._hold(contribution, sealed, statistics)
            await asyncio.to_thread(self._state.add_contribution, contribution, sealed, statistics)
            await self._publish_index()

    async def _hold(self, contribution: RouterContribution, sealed: bytes, statistics: bytes) -> None:
        key = (contribution.peer_id, contribution.task)
        replaced = self._held.get(key)
        await self._compute.run_own(self._add_to_sum, contribution, statistics, replaced[0] if replaced else None)
        self._held[key] = (contribution, sealed)
        self._stale = True

    def _add_to_sum(
        self, contribution: RouterContribution, statistics: bytes, replaced: RouterContribution | None
    ) -> None:
        parsed = ClassStatistics.from_bytes(statistics)
        if dict(parsed.counts) != contribution.samples:
            raise UnsafeStatistics("the statistics count other samples than their signed contribution")
        if replaced is None:
            self._sum.add(parsed)
        else:
            self._sum.replace(ClassStatistics.from_bytes(self._state.blobs.get(replaced.statistics)), parsed)

    async def _publish_index(self) -> None:
        if self._held:
            listing = encode_contribution_index([self._held[key][1] for key in sorted(self._held)])
            index = await asyncio.to_thread(self._state.blobs.put, listing)
            if index != self.index:
                self.index = index
                self.changed.set()

    async def solve(self) -> None:
        """Merge and solve, unless nothing was added since the last time. The old router serves meanwhile."""
        async with self._solving:
            if not self._stale or not self._held:
                return
            self._stale = False
            try:
                self.view = await self._compute.run_own(self._solve)
            except NotPositiveDefinite as failure:
                log.error("the router keeps its last solution", reason=str(failure))

    def _solve(self) -> RouterView:
        merged = self._sum.statistics()
        router = solve_ridge(merged, self._config)
        return RouterView(router=router, contributions=self._sum.num_parts, samples=dict(merged.counts))
