"""A node's memory: ledger and blobs together, written in the order that makes every kill harmless.

A blob is on the disk before the row that names it, and a row is gone before the blob it named is. A kill can
leave a blob without a row, which is waste and no damage, but never a row without its blob.
"""

import contextlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from meshnode.home import Home
from meshnode.logs import get_logger
from meshnode.state.blobs import BlobStore, is_digest
from meshnode.state.ledger import Ledger
from meshnode.state.rows import (
    ContributionRow,
    ExpertRow,
    Generation,
    NewWeights,
    Reached,
    WithdrawalRow,
    all_tasks,
)
from protocol.errors import BlobCorrupt, MalformedSpec, UnknownBlob, UnknownExpert
from protocol.identifiers import Digest, ExpertUid, PeerId, digest_of
from protocol.records import RouterContribution, Withdrawal
from protocol.spec import decode_spec

__all__ = ["KEPT_GENERATIONS", "State"]

KEPT_GENERATIONS: Final = 3
"""Whole generations kept of an expert: the newest, and two to fall back to."""

log = get_logger(__name__)


class State:
    """The state in a home, between `open` and `close`, for the process that holds the home's lock.

    Safe to use from several threads. Writes raise OSError if the disk is full or fails; what was there before
    then still stands. They wait for the disk, so an event loop leaves them to a thread.

    Attributes:
        blobs: Immutable bytes by digest. A blob outlives a restart only if something names it: a generation,
            an expert as its lineage, a contribution, a task, a setting whose value is its digest; or, for a trunk, a
            spec so named.
        ledger: Everything else.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._changing = threading.Lock()
        self._superseded: set[Digest] = set()
        self._held: dict[ExpertUid, Digest] = {}
        """Weights that were last loaded or committed, by expert: what the next are made from, read no second time."""
        self.blobs = BlobStore(home.blobs)
        self.ledger = Ledger(home.ledger)

    def open(self) -> Self:
        """Open the state, made empty if the home has none, and remove what interrupted writes have left.

        Raises:
            StateTooNew: A later version of this program wrote it.
            StateUnreadable: The ledger is damaged.
        """
        self._home.create()
        self.blobs.sweep()
        self.ledger.open()
        return self

    def close(self) -> None:
        """Close the state; a second time does nothing."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get_setting(self, key: str) -> str | None:
        """The value last set, or None."""
        return self.ledger.setting(key)

    def set_setting(self, key: str, value: str) -> None:
        """Remember ``value`` under ``key``; if it is a digest, the blob of that digest is kept."""
        self.ledger.set_setting(key, value)

    def keep_as(self, key: str, data: bytes | None) -> Digest | None:
        """Store a blob and remember its digest as a setting, in the place of the one before; None to have none."""
        with self._changing:
            digest = None if data is None else self.blobs.put(data)
            if (self.ledger.setting(key) or "") != (digest or ""):
                self.ledger.set_setting(key, digest or "")
            return digest

    def add_expert(  # noqa: PLR0913 - a row, field by field
        self,
        uid: ExpertUid,
        *,
        architecture: Mapping[str, object],
        classes: tuple[str, ...],
        origin: Digest | None = None,
        ancestors: tuple[ExpertUid, ...] = (),
        lineage: bytes | None = None,
        placed: bool = False,
    ) -> None:
        """Host an expert from now on; nothing to do if it is hosted already.

        Args:
            uid: The expert.
            architecture: A JSON object with ``kind``, enough to build its module.
            classes: In the order of its module's columns.
            origin: Of weights that its own descend from, if not from the initial ones.
            ancestors: The experts that it succeeds, the oldest first.
            lineage: The document that says how; None without ancestors.
            placed: Whether it is hosted only because the mesh had too few replicas of it.
        """
        digest = None if lineage is None else self.blobs.put(lineage)
        self.ledger.add_expert(
            ExpertRow(
                uid=uid,
                architecture=architecture,
                classes=classes,
                origin=origin,
                ancestors=ancestors,
                lineage=digest,
                placed=placed,
            )
        )

    def keep(self, uid: ExpertUid) -> None:
        """Host an expert for a reason of this node's own from now on, whatever the mesh has of it."""
        self.ledger.keep(uid)

    def drop(self, uids: Sequence[ExpertUid], *, unwanted_at: float | None) -> None:
        """Stop hosting experts; a kill leaves all of them or none. Their blobs are garbage from then on.

        Args:
            uids: Those hosted here.
            unwanted_at: Unix seconds to remember them with, so that they do not come back by themselves; None for those
                that may.
        """
        with self._changing:
            self._superseded |= {digest for uid in uids for digest in self._named_by(uid)}
            self.ledger.drop(uids, at=unwanted_at)
            for uid in uids:
                self._held.pop(uid, None)

    def hosted_experts(self) -> tuple[ExpertRow, ...]:
        """All experts kept here, retired and declined ones too, sorted by uid."""
        return self.ledger.experts()

    def succeed(  # noqa: PLR0913  # an argument a fact
        self,
        old: ExpertUid,
        expert: ExpertRow,
        weights: bytes | memoryview,
        lineage: bytes,
        *,
        cause: str,
        round_: int = 0,
        tasks: Collection[str] | None = (),
    ) -> Generation:
        """Have a new expert take another one's place; a kill leaves the one or the other current, and both whole.

        Args:
            old: A current expert; retired from now on, which keeps its generations.
            expert: The new one, which names the digest of `lineage`. One that was declined is welcome again.
            weights: Its first ones.
            lineage: The document that says how it was made.
            cause: What made the weights: "migrated", "followed", "imported".
            round_: Number of the last averaging round that they hold; 0 before any.
            tasks: Tasks of this node that they were learned from, beside the old expert's; None where unknown.

        Returns: Its first generation.

        Raises:
            UnknownExpert: `old` is not hosted here, or not as current.
        """
        with self._changing:
            if old not in self._held:
                self.current(old)
            digest = self.blobs.put(lineage)
            assert digest == expert.lineage, "another document than the expert names"
            known = [generation.tasks for generation in self.ledger.generations(old)[:1]]
            first = Generation(
                uid=expert.uid,
                digest=self.blobs.put(weights),
                cause=cause,
                parent=self._held.get(old),
                created_at=time.time(),
                reached=None,
                round=round_,
                tasks=all_tasks(tasks, *known),
            )
            forgotten = self._named_by(expert.uid)
            generation = self.ledger.succeed(old, expert, first)
            self._superseded |= forgotten
            self._held[expert.uid] = generation.digest
            return generation

    def roll_back(self, uid: ExpertUid, to: ExpertUid) -> None:
        """Give a successor's place back to a retired expert, and remember that the successor was declined.

        Raises:
            UnknownExpert: `uid` is not hosted here as current, or `to` is not retired here.
        """
        with self._changing:
            self.ledger.roll_back(uid, to)

    def retire(self, uid: ExpertUid) -> None:
        """Keep a current expert as retired, with its generations, though nothing has succeeded it.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
        """
        with self._changing:
            self.ledger.retire(uid)

    def revive(self, uid: ExpertUid) -> None:
        """Have a retired expert be current again, as it was.

        Raises:
            UnknownExpert: It is not kept here as retired.
        """
        with self._changing:
            self.ledger.revive(uid)

    def decline(self, uid: ExpertUid) -> None:
        """Remember that a successor is not wanted here, such as one that was judged worse; it need not be hosted."""
        self.ledger.decline(uid)

    def is_declined(self, uid: ExpertUid) -> bool:
        """Whether this was remembered of the expert: by `decline`, or by `roll_back`."""
        return self.ledger.is_declined(uid)

    def commit_generation(  # noqa: PLR0913  # an argument a fact
        self,
        uid: ExpertUid,
        weights: bytes | memoryview,
        *,
        cause: str,
        reached: Reached | None = None,
        round_: int = 0,
        tasks: Collection[str] | None = (),
        now_s: float | None = None,
    ) -> Generation:
        """As `commit_generations`, of one expert; arguments as `NewWeights`."""
        new = NewWeights(uid=uid, weights=weights, cause=cause, reached=reached, round=round_, tasks=all_tasks(tasks))
        (generation,) = self.commit_generations([new], now_s=now_s)
        return generation

    def commit_generations(self, new: Sequence[NewWeights], *, now_s: float | None = None) -> tuple[Generation, ...]:
        """Keep new weights of experts; when this returns they survive a kill. Before that, all of them do or none.

        Args:
            new: Weights of experts hosted here.
            now_s: Unix seconds; None takes the clock's.

        Raises:
            UnknownExpert: An expert is not hosted here.
        """
        with self._changing:
            hosted = {expert.uid for expert in self.ledger.experts()}
            for one in new:
                if one.uid not in hosted:
                    raise UnknownExpert(one.uid)
                if one.uid not in self._held:
                    self.current(one.uid)
            digests = self.blobs.put_all([one.weights for one in new])
            created_at = time.time() if now_s is None else now_s
            held, rows = dict(self._held), []
            for one, digest in zip(new, digests, strict=True):
                rows.append(
                    Generation(
                        uid=one.uid,
                        digest=digest,
                        cause=one.cause,
                        parent=held.get(one.uid),
                        created_at=created_at,
                        reached=one.reached,
                        round=one.round,
                        tasks=all_tasks(one.tasks),
                    )
                )
                held[one.uid] = digest
            generations = self.ledger.add_generations(rows)
            self._held = held
            return generations

    def start_over(
        self, uid: ExpertUid, weights: bytes | memoryview, *, cause: str, tasks: Collection[str] | None, round_: int
    ) -> Generation:
        """Keep weights of an expert that owe nothing to its generations, and forget these, all at once.

        Args:
            uid: An expert hosted here.
            weights: As they will be loaded; stored by digest.
            cause: What made them.
            tasks: Tasks of this node that they were trained on; None where unknown.
            round_: Number of the last averaging round that they hold; 0 before any.

        Raises:
            UnknownExpert: The expert is not hosted here.
        """
        with self._changing:
            before = {generation.digest for generation in self.ledger.generations(uid)}
            generation = self.ledger.start_over(
                Generation(
                    uid=uid,
                    digest=self.blobs.put(weights),
                    cause=cause,
                    parent=None,
                    created_at=time.time(),
                    reached=None,
                    round=round_,
                    tasks=all_tasks(tasks),
                )
            )
            self._held[uid] = generation.digest
            self._superseded |= before
            return generation

    def current(self, uid: ExpertUid) -> Generation | None:
        """The expert's newest generation whose weights are whole on the disk; each one passed over is logged.

        None for an expert that is not hosted, has no generation yet, or has lost them all.
        """
        for generation in self.ledger.generations(uid):
            if self.blobs.is_whole(generation.digest):
                self._held[uid] = generation.digest
                return generation
            log.warning(
                "an expert's weights are lost or corrupt, falling back to an older generation",
                expert=uid,
                generation=generation.number,
            )
        return None

    def add_contribution(self, contribution: RouterContribution, sealed: bytes, statistics: bytes) -> bool:
        """Keep a router contribution, unless this version of it or a newer one is held.

        Args:
            contribution: Opened and checked by the caller.
            sealed: The same as its peer signed it.
            statistics: The bytes of the digest it names.

        Returns:
            Whether it was kept.

        Raises:
            BlobCorrupt: The statistics are not those that the contribution names.
        """
        if digest_of(statistics) != contribution.statistics:
            raise BlobCorrupt(contribution.statistics)
        row = ContributionRow(
            peer_id=contribution.peer_id,
            task=contribution.task,
            version=contribution.version,
            sealed=sealed,
            statistics=contribution.statistics,
        )
        with self._changing:
            before = {(held.peer_id, held.task): held.statistics for held in self.ledger.contributions()}
            self.blobs.put(statistics)
            kept = self.ledger.add_contribution(row)
            obsolete = before.get((row.peer_id, row.task)) if kept else row.statistics
            if obsolete is not None:
                self._superseded.add(obsolete)
        return kept

    def add_withdrawal(self, withdrawal: Withdrawal, sealed: bytes) -> None:
        """Keep that a contribution was withdrawn, and the contribution no more.

        Args:
            withdrawal: Opened and checked by the caller.
            sealed: The same as its peer signed it.
        """
        key = (withdrawal.peer_id, withdrawal.task)
        with self._changing:
            self.ledger.add_withdrawal(
                WithdrawalRow(peer_id=key[0], task=key[1], version=withdrawal.version, sealed=sealed)
            )

    def drop_contributions(self, peer_id: PeerId) -> None:
        """Keep nothing of what a peer contributed."""
        with self._changing:
            self.ledger.drop_contributions(peer_id)

    def let_go(self, digests: Collection[Digest]) -> None:
        """Blobs that nothing will name any more: they go with the next `collect_garbage`, unless something does."""
        with self._changing:
            self._superseded |= set(digests)

    def contributions(self) -> tuple[bytes, ...]:
        """The sealed contributions whose statistics are whole on the disk, sorted by peer and task.

        One whose statistics are lost is logged and left out, as if it had never come: peers still have it.
        """
        whole = []
        for row in self.ledger.contributions():
            if self.blobs.is_whole(row.statistics):
                whole.append(row.sealed)
            else:
                log.warning("a contribution's statistics are lost or corrupt", peer=row.peer_id, task=row.task)
        return tuple(whole)

    def collect_garbage(self) -> tuple[Digest, ...]:
        """Forget all but each expert's last three whole generations, and delete blobs that nothing names.

        A blob stored since `open` that nothing has named yet is spared: its name may be about to be written.

        Returns:
            The digests of the blobs deleted, sorted.
        """
        with self._changing:
            for expert in self.ledger.experts():
                self._superseded |= self._drop_old_generations(expert.uid)
            deleted = self.blobs.collect(self._referenced(), superseded=self._superseded)
            self._superseded.clear()
        return deleted

    def _named_by(self, uid: ExpertUid) -> set[Digest]:
        """The blobs of one expert."""
        lineages = (expert.lineage for expert in self.ledger.experts() if expert.uid == uid)
        return {*(generation.digest for generation in self.ledger.generations(uid)), *filter(None, lineages)}

    def _drop_old_generations(self, uid: ExpertUid) -> set[Digest]:
        generations = self.ledger.generations(uid)
        whole = [generation.number for generation in generations if self.blobs.is_whole(generation.digest)]
        if len(whole) <= KEPT_GENERATIONS:
            return set()
        oldest = whole[KEPT_GENERATIONS - 1]
        self.ledger.drop_generations(uid, below=oldest)
        return {generation.digest for generation in generations if generation.number < oldest}

    def _referenced(self) -> set[Digest]:
        generations = (
            generation.digest for expert in self.ledger.experts() for generation in self.ledger.generations(expert.uid)
        )
        contributions = (row.statistics for row in self.ledger.contributions())
        tasks = (row.digest for row in self.ledger.tasks())
        settings = [Digest(value) for value in self.ledger.settings().values() if is_digest(value)]
        trunks = (self._trunk_of(digest) for digest in settings)
        lineages = (expert.lineage for expert in self.ledger.experts())
        return {*generations, *contributions, *tasks, *settings, *filter(None, trunks), *filter(None, lineages)}

    def _trunk_of(self, digest: Digest) -> Digest | None:
        """The trunk that the blob of this digest names, if it is a mesh spec."""
        with contextlib.suppress(UnknownBlob, BlobCorrupt, MalformedSpec):
            return decode_spec(self.blobs.get(digest)).trunk
        return None
