"""From a digest to its bytes: resumed where an earlier pull has stopped, checked, and without those who lie."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

from meshnode.blobs.asking import FIRST_BYTES, Asker, Part
from meshnode.blobs.plan import Span
from meshnode.blobs.transfer import Progress, Transfer
from meshnode.logs import get_logger
from meshnode.state.blobs import BlobStore
from meshnode.state.partials import PartialBlob
from meshnode.transport.interface import Transport
from protocol.errors import BlobCorrupt, ModuleMeshError, UnknownBlob
from protocol.identifiers import Digest, PeerId, digest_of
from protocol.limits import MAX_BLOB_BYTES

__all__ = ["BlobPuller", "Progress"]

PATIENCE_S = 30.0
"""How long peers may take for a blob while there are others that may have it; twice as long each time."""

log = get_logger(__name__)


class BlobPuller:
    """Pulls blobs for one node; of those that go through one puller, no two write the same file.

    Args:
        transport: Reaches the peers.
        blobs: Where what was pulled before is found, and where what takes several parts is kept.
        timeout_s: How long a peer may take for a part, in seconds.
    """

    def __init__(self, transport: Transport, blobs: BlobStore, *, timeout_s: float) -> None:
        self.transport = transport
        self._blobs = blobs
        self._timeout_s = timeout_s
        self._pulling: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()

    async def pull(
        self,
        digest: Digest,
        peer_ids: Iterable[PeerId],
        *,
        limit_bytes: int = MAX_BLOB_BYTES,
        progress: Progress | None = None,
    ) -> bytes:
        """The bytes of this digest, from the store or from whichever of the peers deliver them.

        A blob of one part is not stored here. A larger one is, as nobody's until something refers to it; one that is
        interrupted stays as far as it has come, and the next pull goes on from there.

        Args:
            peer_ids: Those that may have it, the likeliest first. This node itself is passed over.
            limit_bytes: A longer blob is refused.
            progress: Is told how far a blob of several parts has come.

        Raises:
            UnknownBlob: None of them delivers it; the last failure is its cause.
            OSError: The disk is full or fails.
        """
        lock = self._pulling.setdefault(digest, asyncio.Lock())
        async with lock:
            if self._blobs.has(digest):
                try:
                    return await asyncio.to_thread(self._blobs.get, digest)
                except (BlobCorrupt, UnknownBlob):
                    pass  # a peer's copy takes its place
            others = [peer_id for peer_id in dict.fromkeys(peer_ids) if peer_id != self.transport.peer_id]
            asker = Asker(self.transport, digest, limit_bytes=limit_bytes, timeout_s=self._timeout_s)
            return await _Pull(asker, self._blobs, digest, progress).run(others)


class _Pull:
    """One pull. Who lies is found by asking peers alone.

    If the whole is wrong and one peer has brought all of it, that peer has lied. If several have, each is asked alone,
    until one brings what the digest names: then every part that another one had brought can be judged too.
    """

    def __init__(self, asker: Asker, blobs: BlobStore, digest: Digest, progress: Progress | None) -> None:
        self._asker = asker
        self._blobs = blobs
        self._digest = digest
        self._progress = progress
        self._groups: deque[Sequence[PeerId]] = deque()
        """Who is asked together, one group after the other."""
        self._left_out: set[PeerId] = set()
        self._suspected: list[tuple[Span, PeerId, Digest]] = []
        """Parts of a whole that was wrong, of which it is not known which were."""
        self._failure: ModuleMeshError | None = None
        self._patience_s = PATIENCE_S

    async def run(self, peer_ids: Sequence[PeerId]) -> bytes:
        self._groups.append(peer_ids)
        while self._groups:
            group = [peer_id for peer_id in self._groups.popleft() if peer_id not in self._left_out]
            whole = await self._from(group)
            if whole is not None:
                return whole
        raise UnknownBlob(self._digest) from self._failure

    async def _from(self, group: Sequence[PeerId]) -> bytes | None:
        """The blob from these peers; None if they do not deliver it, and those that may yet are in `_groups`."""
        offset = self._blobs.partials.num_bytes(self._digest)
        first = await self._asker.first(group, Span(offset, FIRST_BYTES))
        if isinstance(first, dict):
            self._note(first.values())
            return None
        peer_id, part = first
        if offset or len(part.data) < part.total_bytes:
            return await self._in_parts(group, first)
        if digest_of(part.data) == self._digest:
            return bytes(part.data)
        self._leave_out(peer_id)
        self._groups.appendleft(group)
        return None

    async def _in_parts(self, group: Sequence[PeerId], first: tuple[PeerId, Part]) -> bytes | None:
        first_of, part = first
        partial = await asyncio.to_thread(self._blobs.partials.open, self._digest)
        try:
            begins_at, total_bytes = partial.num_bytes, part.total_bytes
            if begins_at > total_bytes:  # what is there is of no such blob
                await asyncio.to_thread(partial.clear)
                self._groups.appendleft(group)
                return None
            order = [first_of, *(peer_id for peer_id in group if peer_id != first_of)]
            transfer = Transfer(self._asker, partial, first, order, progress=self._progress)
            has_rivals = any(set(rivals) - self._left_out for rivals in self._groups)
            await transfer.run(patience_s=self._patience_s, has_rivals=has_rivals)
            self._note(transfer.failures.values())
            if partial.is_right():
                whole, _ = await asyncio.gather(
                    asyncio.to_thread(partial.read), asyncio.to_thread(self._blobs.adopt, partial)
                )
                await self._judge(partial)
                return whole
            if partial.num_bytes == total_bytes:
                await self._suspect(group, transfer.brought, partial, begins_at)
                return None
            if transfer.differing:
                await asyncio.to_thread(partial.clear)
                self._groups.appendleft([peer_id for peer_id in group if peer_id in transfer.differing])
            # Those that were only too slow come in again behind the others.
            self._groups.append([peer_id for peer_id in group if peer_id not in transfer.failures])
            self._patience_s *= 2
            return None
        finally:
            await asyncio.to_thread(self._blobs.partials.close, partial)

    async def _suspect(
        self, group: Sequence[PeerId], brought: Sequence[tuple[Span, PeerId]], partial: PartialBlob, begins_at: int
    ) -> None:
        """The whole is wrong: find out through whom."""
        contributors = {peer_id for span, peer_id in brought if span.length}
        if begins_at:
            # Nobody can be blamed for what an earlier pull has left.
            self._groups.appendleft(group)
        elif len(contributors) == 1:
            self._leave_out(*contributors)
            self._groups.appendleft(group)
        else:
            digests = await asyncio.to_thread(partial.digests, [span for span, _ in brought])
            self._suspected = [(*part, found) for part, found in zip(brought, digests, strict=True)]
            self._groups.extendleft([peer_id] for peer_id in reversed(group))
        await asyncio.to_thread(partial.clear)

    async def _judge(self, partial: PartialBlob) -> None:
        """Name those whose parts of a wrong whole were not what is right."""
        right = await asyncio.to_thread(partial.digests, [span for span, _, _ in self._suspected])
        judged = zip(self._suspected, right, strict=True)
        liars = {peer_id for (_, peer_id, found), wanted in judged if found != wanted}
        self._leave_out(*liars - self._left_out)

    def _leave_out(self, *peer_ids: PeerId) -> None:
        for peer_id in peer_ids:
            log.warning("a peer sent other bytes than their digest names", peer=peer_id, digest=self._digest)
            self._left_out.add(peer_id)
            self._failure = BlobCorrupt(self._digest)

    def _note(self, failures: Iterable[ModuleMeshError]) -> None:
        for failure in failures:
            self._failure = failure
