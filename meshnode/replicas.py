"""Replicas that come from elsewhere: pulled from peers or read from a file, and hosted here from then on."""

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from experts.architectures.base import Architecture
from meshnode.blobs import BlobPuller, Progress
from meshnode.compute import Compute
from meshnode.directory import Directory
from meshnode.expert_files import already_hosted, expert_to_file, other_origin, read_expert_file
from meshnode.hosted import FOLLOWED, IMPORTED, PLACED, Descent, HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.listings import ExpertListing, Replica
from meshnode.mesh import Mesh
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from protocol.errors import MalformedLineage, UnknownBlob, UnknownExpert
from protocol.identifiers import Digest, ExpertUid, PeerId
from protocol.limits import MAX_LINEAGE_BYTES
from protocol.lineage import lineage_of
from protocol.records import ExpertAdvert

__all__ = ["Fetched", "Replicas"]


class Fetched(NamedTuple):
    """A replica as it came from a peer or a file, checked as far as its advert goes, and not hosted yet."""

    advert: ExpertAdvert
    architecture: Architecture
    weights: bytes
    lineage: bytes | None
    """The document that the advert names; None without ancestors."""


@dataclass(kw_only=True, slots=True)
class Replicas:
    """Takes replicas in, one at a time, and gives them out as files."""

    mesh: Mesh
    state: State
    host: ExpertHost
    directory: Directory
    puller: BlobPuller
    compute: Compute
    telemetry: Telemetry = field(default_factory=Telemetry)
    own_samples: Callable[[Collection[str]], int]
    """How many samples of some classes this node has contributed the statistics of."""
    adopting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an expert comes to be hosted, by whichever way: no two may host the same one."""

    async def pull(
        self,
        uid: ExpertUid,
        *,
        source: PeerId | None = None,
        progress: Progress | None = None,
        placed: bool = False,
    ) -> HostedExpert:
        """Host a replica of a peer's expert, from its newest weights; nothing to pull if it is current here.

        If it succeeds one that is current here, it takes that one's place.

        Args:
            source: The only peer to take it from; None takes any.
            progress: Is told how far the weights have come, where they come in several parts.
            placed: Whether it is hosted only because the mesh has too few replicas: then it may be given back. One that
                is asked for otherwise is this node's own from then on.

        Raises:
            Refused: As `ExpertHost.check_welcome`, or what it succeeds is in training.
            CorruptWeights: The weights are not its own.
            ModuleMeshError: As `fetch`.
        """
        if uid not in self.host.experts:
            self.host.check_welcome(uid)
            fetched = await self.fetch(uid, source=source, progress=progress)
            async with self.adopting:
                if uid not in self.host.experts:
                    descent = Descent(round=fetched.advert.round, lineage=fetched.lineage)
                    await self._host(fetched, dataclasses.replace(descent, cause=PLACED) if placed else descent)
                    self._tell(uid, "placed" if placed else "replica")
        if not placed:
            await self.host.keep(uid)
        return self.host.get(uid)

    async def fetch(self, uid: ExpertUid, *, source: PeerId | None = None, progress: Progress | None = None) -> Fetched:
        """A peer's replica at its newest weights, without hosting it.

        Args:
            source: The only peer to take it from; None takes any.
            progress: Is told how far the weights have come, where they come in several parts.

        Raises:
            UnknownExpert: No live peer advertises it, or `source` does not.
            UnknownBlob: None of those that do delivers its weights and lineage; the last failure is its cause.
            MalformedLineage: The lineage that is delivered is not its own.
        """
        listing = self.directory.experts().get(uid)
        if listing is None:
            raise UnknownExpert(uid)
        # The newest that a peer still has: while they are asked for, it may have come to newer ones.
        replicas = [replica for replica in listing.replicas if source in (None, replica.peer_id)]
        failure: UnknownBlob | MalformedLineage | None = None
        for holders in _by_weights(replicas):
            try:
                return await self._fetch_from(listing, holders, progress)
            except (UnknownBlob, MalformedLineage) as exc:
                failure = failure or exc
        raise failure or UnknownExpert(uid)

    async def _fetch_from(self, listing: ExpertListing, holders: list[Replica], progress: Progress | None) -> Fetched:
        """From peers that advertise the same weights and lineage."""
        advert, peer_ids = holders[0].advert, [replica.peer_id for replica in holders]
        lineage = await self.lineage(advert, peer_ids)
        weights = await self.puller.pull(advert.weights, peer_ids, progress=progress)
        return Fetched(advert, self.mesh.architecture(advert.form, len(listing.classes)), weights, lineage)

    async def lineage(self, advert: ExpertAdvert, peer_ids: Iterable[PeerId]) -> bytes | None:
        """The document that says how an expert was made of those that it succeeds; None if it succeeds none.

        Args:
            advert: What is said of it.
            peer_ids: Who may have the document, if this node has not.

        Raises:
            UnknownBlob: Nobody delivers it.
            MalformedLineage: It is none, or another expert's.
        """
        if advert.lineage is None:
            return None
        data = await self.puller.pull(advert.lineage, peer_ids, limit_bytes=MAX_LINEAGE_BYTES)
        lineage_of(advert, data)
        return data

    async def export(self, uid: ExpertUid) -> bytes:
        """The served generation of a hosted expert as a file.

        Raises:
            UnknownExpert: It is not hosted here.
        """
        expert = self.host.get(uid)
        advert, blobs = expert.advert(), self.state.blobs
        weights = await asyncio.to_thread(blobs.get, advert.weights)
        lineage = None if advert.lineage is None else await asyncio.to_thread(blobs.get, advert.lineage)
        mesh_id = self.mesh.mesh_id
        return await self.compute.run_own(expert_to_file, advert, mesh_id, expert.origin, weights, lineage)

    async def take(self, data: bytes, *, replace: bool) -> HostedExpert:
        """Host the expert of a file. If it succeeds one that is current here, it takes that one's place.

        Args:
            data: The file's bytes, from anyone.
            replace: Whether its weights may take the place of those of a replica that is hosted already.

        Raises:
            ExpertFileRefused: It is no expert of this mesh.
            Refused: The expert is hosted already, it or what it succeeds is in training, the file's weights are of
                another origin, or as `ExpertHost.check_welcome`.
        """
        file = await self.compute.run_own(read_expert_file, data, self.mesh)
        advert, origin = file.advert, file.origin
        async with self.adopting:
            if advert.uid not in self.host.experts:
                fetched = Fetched(advert, file.architecture, file.weights, file.lineage)
                descent = Descent(cause=IMPORTED, round=advert.round, origin=origin, lineage=file.lineage)
                await self._host(fetched, descent)
                self._tell(advert.uid, "file")
            elif replace:
                if origin != self.host.get(advert.uid).origin:
                    raise other_origin(advert.uid)
                await self.host.replace(advert.uid, file.weights)
            else:
                raise already_hosted(advert.uid)
        return self.host.get(advert.uid)

    async def _host(self, fetched: Fetched, descent: Descent) -> None:
        """In the place of the newest expert that it succeeds, or else beside all others."""
        advert, host = fetched.advert, self.host
        old = next((uid for uid in reversed(advert.ancestors) if uid in host.experts), None)
        if old is None or fetched.lineage is None:
            # It may be what this node has trained itself before it lost it.
            tasks = None if self.own_samples(advert.classes) else ()
            descent = dataclasses.replace(descent, tasks=tasks)
            await host.adopt(advert.uid, advert.classes, fetched.architecture, fetched.weights, descent)
            return
        cause = IMPORTED if descent.cause == IMPORTED else FOLLOWED
        await host.succeed(
            old,
            architecture=fetched.architecture,
            weights=fetched.weights,
            lineage=fetched.lineage,
            cause=cause,
            round=advert.round,
        )
        self.telemetry.events.emit("expert_succeeded", expert=advert.uid, succeeds=old, cause=cause)

    def _tell(self, uid: ExpertUid, cause: str) -> None:
        classes = self.host.get(uid).classes
        self.telemetry.events.emit("expert_hosted", expert=uid, classes=classes, cause=cause)


def _by_weights(replicas: list[Replica]) -> list[list[Replica]]:
    """Replicas by what they hold, those of the last round and the highest generation first."""
    found: dict[tuple[Digest, Digest | None], list[Replica]] = {}
    newest_first = sorted(replicas, key=lambda replica: (-replica.advert.round, -replica.advert.generation))
    for replica in newest_first:
        found.setdefault((replica.advert.weights, replica.advert.lineage), []).append(replica)
    return list(found.values())
