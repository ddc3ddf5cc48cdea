"""Which expert or peer a person means who gives the beginning of an id, or a node's name."""

from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.errors import NoSuchPeerOrExpert

__all__ = ["single_expert", "single_replica"]


def single_expert(experts: Sequence[Mapping[str, Any]], uid: str) -> Mapping[str, Any]:
    """The one expert of the daemon's documents whose uid begins so. Raises NoSuchPeerOrExpert if none or several do."""
    found = [expert for expert in experts if expert["uid"].startswith(uid)]
    if not uid or len(found) != 1:
        raise NoSuchPeerOrExpert(uid)
    return found[0]


def single_replica(expert: Mapping[str, Any], peer: str) -> Mapping[str, Any]:
    """The replica at the one peer of this name, or whose id begins so. Raises NoSuchPeerOrExpert likewise."""
    replicas: Sequence[Mapping[str, Any]] = expert["replicas"]
    found = [replica for replica in replicas if peer in (replica["name"], replica["peer_id"])]
    found = found or [replica for replica in replicas if replica["peer_id"].startswith(peer)]
    if not peer or len(found) != 1:
        raise NoSuchPeerOrExpert(peer)
    return found[0]
