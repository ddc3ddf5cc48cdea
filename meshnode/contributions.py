"""The router of a node: its own and its peers' statistics, kept apart by contributor, summed and solved anew.

Each contribution is signed by its contributor, so that any peer can pass it on. It counts once however often it
arrives, and the sum is exact, so all peers that hold the same set hold the same router, in whatever order it came.
A contribution leaves in two ways: its contributor withdraws it, for all and whoever passes on an old copy; or this node
refuses its contributor, for itself. Either way the router is, bit by bit, one that never had it.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
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
    Withdrawal,
    decode_contribution_index,
    encode_contribution_index,
    open_contribution,
    open_withdrawal,
    seal_contribution,
    seal_withdrawal,
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
        self._withdrawn: dict[ContributionKey, tuple[Withdrawal, bytes]] = {}
        self._sum = ExactSum(feature_dim, fingerprint=fingerprint)
        """Of what is held, whose bytes stay on the disk; touched in the compute thread only."""
        self._taken: dict[PeerId, tuple[Digest | None, Digest | None]] = {}
        """Indices that were read to their end, by peer."""
        self._indices: set[Digest] = set()
        """Blobs of this process that list what is or was held."""
        self._changing = asyncio.Lock()
        self._solving = asyncio.Lock()
        self._stale = True
        self.view: RouterView | None = None
        """The router as of now; None before the first contribution."""
        self.index: Digest | None = None
        """Digest of the blob that lists what is held; None while nothing is."""
        self.withdrawals: Digest | None = None
        """Digest of the blob that lists what is known to be withdrawn; None while nothing is."""
        self.changed = asyncio.Event()
        """Set whenever `index` or `withdrawals` has become another; whoever waits clears it first."""

    async def load(self, *, now_s: float) -> None:
        """Take up what the state holds."""
        refused = self._state.ledger.forgotten("peer")
        for sealed in self._state.contributions():
            try:
                contribution = open_contribution(sealed, mesh_id=self._mesh_id, now_s=now_s)
                if contribution.peer_id in refused:
                    continue  # killed before it was dropped
                await self._hold(contribution, sealed, self._state.blobs.get(contribution.statistics))
            except (RecordRefused, UnsafeStatistics) as refusal:
                log.warning(
                    "a stored contribution is left out", reason=str(refusal)
                )  # signed before the clock was set back
        for row in self._state.ledger.withdrawals():
            try:
                withdrawal = open_withdrawal(row.sealed, mesh_id=self._mesh_id, now_s=now_s)
                self._withdrawn[row.peer_id, row.task] = (withdrawal, row.sealed)
            except RecordRefused as refusal:
                log.warning("a stored withdrawal is left out", reason=str(refusal))
        await self._publish_indices()
        await self.solve()

    def version_of(self, peer_id: PeerId, task: str) -> int:
        """The version held of a contribution, or up to which it is withdrawn; 0 when none is."""
        key = (peer_id, task)
        return max((said[key][0].version for said in (self._held, self._withdrawn) if key in said), default=0)

    def held(self) -> tuple[RouterContribution, ...]:
        """All contributions in the sum, sorted by contributor and task."""
        return tuple(self._held[key][0] for key in sorted(self._held))

    def withdrawn(self) -> tuple[Withdrawal, ...]:
        """All that is known to be withdrawn, likewise sorted."""
        return tuple(self._withdrawn[key][0] for key in sorted(self._withdrawn))

    def own_samples(self, peer_id: PeerId, classes: Collection[str]) -> int:
        """Samples of these classes that a peer has contributed the statistics of, over all its tasks."""
        held = (contribution for contribution, _ in self._held.values() if contribution.peer_id == peer_id)
        return sum(number for of in held for name, number in of.samples.items() if name in classes)

    async def contribute(self, key: SigningKey, task: str, statistics: bytes, *, issued_at: float) -> None:
        """Sign and hold this node's own statistics of one task, replacing an older version of the same.

        Nothing happens if the task is to stay forgotten: it may have been in training when that was ordered.
        """
        digest = await asyncio.to_thread(self._state.blobs.put, statistics)
        async with self._changing:
            held = self._held.get((key.peer_id, task))
            if held and held[0].statistics == digest:
                return  # learned again from the same data, as after a restart
            if task in self._state.ledger.forgotten("task"):
                self._state.let_go([digest])
                return
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

    async def withdraw(self, key: SigningKey, task: str, *, issued_at: float) -> RouterContribution | None:
        """Take this node's own statistics of a task back, here and wherever the withdrawal comes to.

        Returns: What was withdrawn; None if nothing is held.
        """
        async with self._changing:
            held = self._held.get((key.peer_id, task))
            if held is None:
                return None
            withdrawal = Withdrawal(
                mesh_id=self._mesh_id,
                peer_id=key.peer_id,
                task=task,
                version=held[0].version + 1,
                issued_at=issued_at,
            )
            await self._take_back(withdrawal, seal_withdrawal(withdrawal, key))
            return held[0]

    async def refuse(self, peer_id: PeerId) -> tuple[RouterContribution, ...]:
        """Drop what a peer contributed, here alone, and take nothing of it any more until it is `readmitted`.

        Returns: What was dropped.
        """
        async with self._changing:
            await asyncio.to_thread(self._state.ledger.forget, "peer", peer_id)
            dropped = [key for key in sorted(self._held) if key[0] == peer_id]
            gone = [await self._out_of_sum(key) for key in dropped]
            await asyncio.to_thread(self._state.drop_contributions, peer_id)
            await self._publish_indices()
            return tuple(gone)

    async def readmit(self, peer_id: PeerId) -> None:
        """Take what a peer contributes again; it is pulled with the next look at the peers' records."""
        async with self._changing:
            await asyncio.to_thread(self._state.ledger.unforget, "peer", peer_id)
            self._taken.clear()  # indices that were read to their end hold what was passed over

    async def pull(self, puller: BlobPuller, directory: Directory) -> None:
        """Fetch what peers hold or withdraw and we have not. A peer that fails is left for the next time."""
        for record in directory.records():
            if record.peer_id == puller.transport.peer_id:
                continue
            indices = (record.contributions, record.withdrawals)
            if self._taken.get(record.peer_id) == indices:
                continue
            try:
                # First what counts no more, so that it is not fetched.
                await self._pull_withdrawals(puller, record.peer_id, record.withdrawals)
                await self._pull_contributions(puller, record.peer_id, record.contributions)
                self._taken[record.peer_id] = indices
            except (ModuleMeshError, UnsafeStatistics) as failure:
                log.info("contributions not taken", peer=record.peer_name, reason=str(failure))

    async def _pull_withdrawals(self, puller: BlobPuller, peer_id: PeerId, index: Digest | None) -> None:
        if index in (None, self.withdrawals):
            return
        for sealed in await _listed(puller, index, peer_id):
            withdrawal = open_withdrawal(sealed, mesh_id=self._mesh_id, now_s=puller.transport.now_s())
            async with self._changing:
                await self._take_back(withdrawal, sealed)

    async def _pull_contributions(self, puller: BlobPuller, peer_id: PeerId, index: Digest | None) -> None:
        if index in (None, self.index):
            return
        refused = self._state.ledger.forgotten("peer")
        for sealed in await _listed(puller, index, peer_id):
            contribution = open_contribution(sealed, mesh_id=self._mesh_id, now_s=puller.transport.now_s())
            known = contribution.version <= self.version_of(contribution.peer_id, contribution.task)
            if known or contribution.peer_id in refused:
                continue
            statistics = await puller.pull(contribution.statistics, [peer_id])
            async with self._changing:
                await self._add(contribution, sealed, statistics)

    async def _add(self, contribution: RouterContribution, sealed: bytes, statistics: bytes) -> None:
        """One at a time: the trainer's own and those of peers come from different tasks, and the index lists all."""
        key = (contribution.peer_id, contribution.task)
        if contribution.version <= self.version_of(*key) or key[0] in self._state.ledger.forgotten("peer"):
            return
        await self._hold(contribution, sealed, statistics)
        self._withdrawn.pop(key, None)
        await asyncio.to_thread(self._state.add_contribution, contribution, sealed, statistics)
        await self._publish_indices()

    async def _take_back(self, withdrawal: Withdrawal, sealed: bytes) -> None:
        """Of a contribution and a withdrawal of one version the withdrawal stays, whichever came first."""
        key = (withdrawal.peer_id, withdrawal.task)
        known = self._withdrawn.get(key)
        newest = self.version_of(*key)
        if newest > withdrawal.version or (known and known[0].version == withdrawal.version):
            return
        # On the disk first: a kill in between leaves it withdrawn, and a sum is made anew at every start.
        await asyncio.to_thread(self._state.add_withdrawal, withdrawal, sealed)
        if key in self._held:
            await self._out_of_sum(key)
        self._withdrawn[key] = (withdrawal, sealed)
        await self._publish_indices()

    async def _out_of_sum(self, key: ContributionKey) -> RouterContribution:
        """The contribution, which is not in the sum any more."""
        gone, _ = self._held[key]
        await self._compute.run_own(self._subtract, gone)
        del self._held[key]
        self._state.let_go([gone.statistics, *self._indices])
        self._stale = True
        return gone

    def _subtract(self, contribution: RouterContribution) -> None:
        self._sum.subtract(ClassStatistics.from_bytes(self._state.blobs.get(contribution.statistics)))

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

    async def _publish_indices(self) -> None:
        index = await self._kept_index("contributions", (sealed for _, sealed in self._held.values()))
        withdrawals = await self._kept_index("withdrawals", (sealed for _, sealed in self._withdrawn.values()))
        if (index, withdrawals) != (self.index, self.withdrawals):
            self.index, self.withdrawals = index, withdrawals
            self.changed.set()

    async def _kept_index(self, setting: str, sealed: Iterable[bytes]) -> Digest | None:
        """Of the blob that lists these; None if there are none."""
        listed = list(sealed)
        data = encode_contribution_index(listed) if listed else None
        index = await asyncio.to_thread(self._state.keep_as, setting, data)
        self._indices |= {index} if index else set()
        return index

    async def statistics(self) -> bytes | None:
        """Count, mean and scatter of all that is held, merged, as they would travel; None before any."""
        if not self._held:
            return None
        return await self._compute.run_own(lambda: self._sum.statistics().to_bytes())

    async def solve(self) -> None:
        """Merge and solve, unless nothing has changed since the last time. The old router serves meanwhile."""
        async with self._solving:
            if not self._stale:
                return
            self._stale = False
            if not self._held:
                self.view = None
                return
            try:
                self.view = await self._compute.run_own(self._solve)
            except NotPositiveDefinite as failure:
                log.error("the router keeps its last solution", reason=str(failure))

    async def merged(self) -> ClassStatistics | None:
        """The exact sum of what is held; None while nothing is."""
        return await self._compute.run_own(self._sum.statistics) if self._held else None

    def _solve(self) -> RouterView:
        merged = self._sum.statistics()
        router = solve_ridge(merged, self._config)
        return RouterView(router=router, contributions=self._sum.num_parts, samples=dict(merged.counts))


async def _listed(puller: BlobPuller, index: Digest | None, peer_id: PeerId) -> list[bytes]:
    assert index is not None
    return decode_contribution_index(await puller.pull(index, [peer_id], limit_bytes=MAX_CONTRIBUTION_INDEX_BYTES))
