"""Replicas that come from elsewhere: pulled from peers or read from a file, and hosted here from then on."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshnode.blobs import BlobPuller, Progress
from meshnode.compute import Compute
from meshnode.directory import Directory, ExpertListing, Replica
from meshnode.expert_files import already_hosted, expert_to_file, other_origin, read_expert_file
from meshnode.hosting import IMPORTED, Descent, ExpertHost, HostedExpert
from meshnode.mesh import Mesh
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from protocol.errors import UnknownBlob, UnknownExpert
from protocol.identifiers import Digest, ExpertUid, PeerId
from protocol.records import ExpertAdvert

__all__ = ["Replicas"]


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
    _adopting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def pull(
        self, uid: ExpertUid, *, source: PeerId | None = None, progress: Progress | None = None
    ) -> HostedExpert:
        """Host a replica of a peer's expert, from its newest weights; nothing to do if it is hosted here.

        Args:
            source: The only peer to take it from; None takes any.
            progress: Is told how far the weights have come, where they come in several parts.

        Raises:
            UnknownExpert: No live peer advertises it, or `source` does not.
            UnknownBlob: None of those that do delivers its weights; the last failure is its cause.
            CorruptWeights: The weights are not its own.
        """
        if uid in self.host.experts:
            return self.host.get(uid)
        listing = self.directory.experts().get(uid)
        if listing is None:
            raise UnknownExpert(uid)
        advert, weights = await self._newest(listing, source, progress)
        async with self._adopting:
            if uid not in self.host.experts:
                architecture = self.mesh.architecture(advert.form, len(listing.classes))
                await self.host.adopt(uid, listing.classes, architecture, weights, Descent(round=advert.round))
                self._tell(uid, "replica")
        return self.host.get(uid)

    async def _newest(
        self, listing: ExpertListing, source: PeerId | None, progress: Progress | None
    ) -> tuple[ExpertAdvert, bytes]:
        """The newest weights that a peer still has: while they are asked for, it may have come to newer ones."""
        replicas = [replica for replica in listing.replicas if source in (None, replica.peer_id)]
        failure: UnknownBlob | None = None
        for weights, holders in _by_weights(replicas).items():
            try:
                peer_ids = [replica.peer_id for replica in holders]
                return holders[0].advert, await self.puller.pull(weights, peer_ids, progress=progress)
            except UnknownBlob as exc:
                failure = failure or exc
        raise failure or UnknownExpert(listing.uid)

    async def export(self, uid: ExpertUid) -> bytes:
        """The served generation of a hosted expert as a file.

        Raises:
            UnknownExpert: It is not hosted here.
        """
        expert = self.host.get(uid)
        advert = expert.advert()
        weights = await asyncio.to_thread(self.state.blobs.get, advert.weights)
        return await self.compute.run_own(expert_to_file, advert, self.mesh.mesh_id, expert.origin, weights)

    async def take(self, data: bytes, *, replace: bool) -> HostedExpert:
        """Host the expert of a file.

        Args:
            data: The file's bytes, from anyone.
            replace: Whether its weights may take the place of those of a replica that is hosted already.

        Raises:
            ExpertFileRefused: It is no expert of this mesh.
            Refused: The expert is hosted already, is in training, or the file's weights are of another origin.
        """
        advert, architecture, weights, origin = await self.compute.run_own(read_expert_file, data, self.mesh)
        async with self._adopting:
            if advert.uid not in self.host.experts:
                descent = Descent(cause=IMPORTED, round=advert.round, origin=origin)
                await self.host.adopt(advert.uid, advert.classes, architecture, weights, descent)
                self._tell(advert.uid, "file")
            elif replace:
                if origin != self.host.get(advert.uid).origin:
                    raise other_origin(advert.uid)
                await self.host.replace(advert.uid, weights)
            else:
                raise already_hosted(advert.uid)
        return self.host.get(advert.uid)

    def _tell(self, uid: ExpertUid, cause: str) -> None:
        classes = self.host.get(uid).classes
        self.telemetry.events.emit("expert_hosted", expert=uid, classes=classes, cause=cause)


def _by_weights(replicas: list[Replica]) -> Mapping[Digest, list[Replica]]:
    """Replicas by their weights, those of the last round and the highest generation first."""
    found: dict[Digest, list[Replica]] = {}
    newest_first = sorted(replicas, key=lambda replica: (-replica.advert.round, -replica.advert.generation))
    for replica in newest_first:
        found.setdefault(replica.advert.weights, []).append(replica)
    return found
