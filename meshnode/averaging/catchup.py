"""How a replica that has missed rounds comes to where the others are, keeping what it has learned itself."""

from collections.abc import Awaitable, Callable

from experts.averaging import Averaged
from experts.errors import ExpertsError
from meshnode.blobs import BlobPuller
from meshnode.directory import Directory
from meshnode.hosting import ExpertHost
from meshnode.listings import Replica
from meshnode.logs import get_logger
from protocol.errors import ModuleMeshError
from protocol.identifiers import ExpertUid

__all__ = ["catch_up"]

log = get_logger(__name__)

Apply = Callable[[ExpertUid, Averaged, int], Awaitable[None]]


async def catch_up(uid: ExpertUid, directory: Directory, host: ExpertHost, puller: BlobPuller, *, apply: Apply) -> bool:
    """Take over the newest averaged replica, and add what this one has learned since its own last round.

    Args:
        uid: An expert hosted here.
        directory: Knows who has averaged it last.
        host: Holds this node's replica.
        puller: Brings weights.
        apply: Commits what was pulled, to the replica and to its training.

    Returns: Whether there was something newer, and it could be had.
    """
    expert, listing = host.get(uid), directory.experts().get(uid)
    # One that was made elsewhere of the same ancestor has the same uid, and parameters that have no mean with these.
    akin = [one for one in listing.replicas if one.advert.lineage == expert.lineage] if listing else []
    newest = max(akin, key=_round, default=None)
    if newest is None or newest.advert.round <= expert.round:
        return False
    holders = [replica.peer_id for replica in akin if replica.advert.weights == newest.advert.weights]
    try:
        mean = await host.vector_of(uid, await puller.pull(newest.advert.weights, holders))
    except (ModuleMeshError, ExpertsError, OSError) as failure:  # nobody's weights may end this node's rounds
        log.info("the newest replica cannot be pulled", expert=uid, reason=str(failure))
        return False
    own = await host.snapshot_beside(uid)
    delta = mean - (own if expert.reference is None else expert.reference)
    await apply(uid, Averaged(mean=mean, delta=delta), newest.advert.round)
    return True


def _round(replica: Replica) -> int:
    return replica.advert.round
