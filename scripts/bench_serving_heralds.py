"""In a child: peers that advertise experts and do nothing else, and a client that looks them all up."""

import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from experts.trunk.codec import trunk_from_bytes
from meshnode.advertiser import Advertiser
from meshnode.directory import Directory
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.joining import open_client
from meshnode.mesh import Mesh
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from protocol.identifiers import digest_of
from protocol.limits import MAX_RECORD_TTL_S
from protocol.records import ExpertAdvert, PeerRecord
from protocol.spec import decode_spec, mesh_id_of

__all__ = ["Herald", "look_up", "open_herald"]

CACHED_READS = 100


class Herald:
    """A peer with a record; made by `open_herald`."""

    def __init__(self, transport: HivemindTransport, advertiser: Advertiser) -> None:
        self._transport = transport
        self._advertiser = advertiser

    @property
    def address(self) -> str:
        return self._transport.addresses[0]

    async def publish(self) -> None:
        """Put the record into the DHT. Raises AssertionError if no node takes it."""
        assert await self._advertiser.publish()


async def open_herald(folder: str, number: int, experts: int, join: Sequence[str], resources: AsyncExitStack) -> Herald:
    """Join the DHT as the peer of this number.

    Args:
        folder: Has the mesh's spec and trunk, and gets this peer's home.
        number: Makes its experts others than any other peer's.
        experts: How many it advertises; they exist in its record only.
        join: Addresses of peers.
        resources: End it.
    """
    mesh, home = _mesh_in(folder), Home(Path(folder) / f"herald-{number}")
    home.create()
    key = load_or_create_identity(home)
    transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
    resources.push_async_callback(transport.aclose)
    for address in join:
        await transport.connect(address)
    adverts = []
    for expert in range(experts):
        classes = (f"{number}.{expert}.a", f"{number}.{expert}.b")
        form = mesh.spec.expert
        weights = digest_of(f"weights of {classes}".encode())
        uid = mesh.uid_of(classes, form)
        adverts.append(
            ExpertAdvert(uid=uid, form=form, classes=classes, since=0.0, round=0, generation=1, weights=weights)
        )

    def describe(issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
        return PeerRecord(
            mesh_id=mesh.mesh_id,
            peer_id=transport.peer_id,
            peer_name=f"herald-{number}",
            issued_at=issued_at,
            expires_at=expires_at,
            leaving=leaving,
            experts=tuple(adverts),
            contributions=None,
        )

    # As long as a lease may hold: the dead are still listed when they are looked up.
    return Herald(transport, Advertiser(transport, key, describe, ttl_s=MAX_RECORD_TTL_S, published=_nobody))


async def look_up(folder: str, address: str, repeats: int) -> dict[str, Any]:
    """Look all experts up as a fresh client, so many times.

    Returns: For each time, in ms: ``refresh``, the first look-up after connecting; ``listing``, what the first
        `experts` takes after it; ``again``, a second look-up; ``cached``, an `experts` after that. And ``found``, by
        the name of the peer, how many of its experts were listed after the first look-up.
    """
    mesh = _mesh_in(folder)
    outcome: dict[str, Any] = {name: [] for name in ("refresh", "listing", "again", "cached", "found")}
    for _ in range(repeats):
        async with AsyncExitStack() as resources:
            _, transport = await open_client(resources)
            await transport.connect(address)
            directory = Directory(transport, mesh.mesh_id, refresh_s=60.0, objection=mesh.objection_to)
            moments_s = [time.perf_counter()]
            await directory.refresh()
            moments_s.append(time.perf_counter())
            listed = directory.experts()
            moments_s.append(time.perf_counter())
            await directory.refresh()
            moments_s.append(time.perf_counter())
            for _ in range(CACHED_READS):
                directory.experts()
            moments_s.append(time.perf_counter())
        spans_ms = [1e3 * (end - begin) for begin, end in itertools.pairwise(moments_s)]
        for name, span_ms in zip(("refresh", "listing", "again", "cached"), spans_ms, strict=True):
            outcome[name].append(span_ms / CACHED_READS if name == "cached" else span_ms)
        by_peer: dict[str, int] = {}
        for listing in listed.values():
            for replica in listing.replicas:
                by_peer[replica.peer_name] = by_peer.get(replica.peer_name, 0) + 1
        outcome["found"].append(by_peer)
    return outcome


def _mesh_in(folder: str) -> Mesh:
    spec = (Path(folder) / "spec").read_bytes()
    trunk = trunk_from_bytes((Path(folder) / "trunk").read_bytes())
    return Mesh(mesh_id=mesh_id_of(spec), spec=decode_spec(spec), trunk=trunk)


def _nobody(record: bytes, peer_id: str) -> None:
    """This peer has no directory to be told."""
