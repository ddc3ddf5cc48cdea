"""A mesh's look-ups and renewals at sizes for which `simulate_hivemind` would take days: the search is hivemind's own
`traverse_dht` over its own `RoutingTable`, for a sample of the nodes; what is sent is as large as it is really encoded.

Modelled is only who knows whom. A node near the key has met everybody, as everybody asks it every few seconds; another
one has met `ACQUAINTANCES` at random and those near the key. And every node answers with all records: it has read them
itself a few seconds ago, and hivemind keeps in its cache, and gives out, what it has read.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.traverse import traverse_dht
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from simulate_hivemind import VirtualLoop
from simulate_network import NetworkConfig, Stream
from simulate_sizes import ORIGIN, peer_named

from meshnode.transport.guard import SignedRecordsOnly
from protocol.identifiers import ExpertUid, MeshId, digest_of
from protocol.records import ExpertAdvert, PeerRecord, record_key, seal_record
from protocol.signing import SigningKey, open_sealed
from protocol.spec import ExpertForm

__all__ = ["Lookups", "answer_bytes", "sample_lookups", "sealed_record", "store_bytes", "verify_s"]

BUCKET = 20
DEPTH_MODULO = 5
WORKERS = 4
REPLICAS = 5
"""hivemind's defaults, which the transport leaves as they are."""

ACQUAINTANCES = 1000
NEAR_KEY = 40
"""Nodes that nearly every search for the key comes by."""

MESH = MeshId(digest_of(b"mesh"))
EXPERTS_PER_NODE = 2
CLASSES_PER_EXPERT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookups:
    """Of a sample of a mesh's nodes, each looking up the mesh's key once."""

    finds: float
    """Requests that a look-up makes, mean."""
    hottest_ratio: float
    """Share of the look-ups that ask the node which is asked most."""
    lookup_s: tuple[float, ...]
    store_s: tuple[float, ...]


def sealed_record() -> bytes:
    """A signed record of a node with two experts of ten classes."""
    key = SigningKey.generate()
    classes = tuple(f"class {number:03d}" for number in range(CLASSES_PER_EXPERT))
    adverts = tuple(
        ExpertAdvert(
            uid=ExpertUid(digest_of(bytes([number]))),
            form=ExpertForm(kind="mlp", config={"activation": "relu", "hidden": 64, "input": 640}),
            classes=classes,
            since=1.7e9,
            round=170_000_000,
            generation=1000,
            weights=ORIGIN,
        )
        for number in range(EXPERTS_PER_NODE)
    )
    record = PeerRecord(
        mesh_id=MESH,
        peer_id=key.peer_id,
        peer_name="a node's name",
        issued_at=1.7e9,
        expires_at=1.7e9 + 60.0,
        leaving=False,
        experts=adverts,
        contributions=ORIGIN,
    )
    return seal_record(record, key)


def answer_bytes(num_records: int, record: bytes) -> int:
    """Of the answer to a find that brings all records of the mesh and 20 neighbours."""
    found = dht_pb2.FindResult(
        type=dht_pb2.FOUND_DICTIONARY,
        value=_dictionary(num_records, record),
        expiration_time=1.7e9,
        nearest_node_ids=[bytes(20)] * min(BUCKET, num_records),
        nearest_peer_ids=[bytes(34)] * min(BUCKET, num_records),
    )
    return len(dht_pb2.FindResponse(results=[found], peer=_SELF).SerializeToString())


def store_bytes(num_records: int, record: bytes) -> tuple[int, int]:
    """Of a request that stores one record, and of one that puts all of them into another node's cache."""

    def request(subkey: bytes, value: bytes) -> int:
        store = dht_pb2.StoreRequest(
            keys=[bytes(20)], subkeys=[subkey], values=[value], expiration_time=[1.7e9], in_cache=[False], peer=_SELF
        )
        return len(store.SerializeToString())

    return request(MSGPackSerializer.dumps(peer_named(0)), record), request(b"", _dictionary(num_records, record))


def verify_s(record: bytes, repeats: int = 500) -> float:
    """What it takes this machine to check one stored record as the transport's guard does."""
    subkey, value = MSGPackSerializer.dumps(_owner_of(record)), MSGPackSerializer.dumps(record)
    stored = DHTRecord(DHTID.generate(record_key(MESH)).to_bytes(), subkey, value, 1.7e9 + 60.0)
    guard = SignedRecordsOnly()
    assert guard.validate(stored)
    began_s = time.perf_counter()
    for _ in range(repeats):
        guard.validate(stored)
    return (time.perf_counter() - began_s) / repeats


def sample_lookups(num_nodes: int, num_samples: int, network: NetworkConfig, seed: int) -> Lookups:
    """Let so many nodes of a mesh search for its key."""
    ring = _Ring(num_nodes, network, seed)
    loop = VirtualLoop()
    searchers = ring.generator.choice(num_nodes, min(num_samples, num_nodes), replace=False).tolist()
    lookup_s, store_s = [], []
    for searcher in searchers:
        began_s = loop.time()
        loop.run_until_complete(ring.search(searcher))
        lookup_s.append(loop.time() - began_s)
        # A store is a search, and then one call to each of the nearest at the same time.
        store_s.append(lookup_s[-1] + max(ring.round_trip_s() for _ in range(REPLICAS)))
    loop.close()
    return Lookups(
        finds=ring.asked.total() / len(searchers),
        hottest_ratio=max(ring.asked.values()) / len(searchers),
        lookup_s=tuple(lookup_s),
        store_s=tuple(store_s),
    )


class _Ring:
    """The nodes by their places in the DHT, with routing tables that are filled when they are first asked."""

    def __init__(self, num_nodes: int, network: NetworkConfig, seed: int) -> None:
        self.generator = np.random.default_rng([seed, num_nodes, *b"ring"])
        self.key = DHTID.generate(record_key(MESH))
        self.asked: Counter[int] = Counter()
        self._ids = [DHTID.generate(source=peer_named(number).encode()) for number in range(num_nodes)]
        self._numbers = {node_id: number for number, node_id in enumerate(self._ids)}
        self._near = sorted(range(num_nodes), key=lambda number: self.key.xor_distance(self._ids[number]))[:NEAR_KEY]
        self._tables: dict[int, RoutingTable] = {}
        sigma, median = network.latency_sigma, np.log(network.latency_s)
        self._latency = Stream(seed, "ring latency", lambda rng, num: rng.lognormal(median, sigma, num))

    def round_trip_s(self) -> float:
        return self._latency.next() + self._latency.next()

    def _table(self, number: int) -> RoutingTable:
        if number not in self._tables:
            table = RoutingTable(self._ids[number], BUCKET, DEPTH_MODULO)
            num_nodes = len(self._ids)
            if number in self._near:
                met = self.generator.permutation(num_nodes).tolist()
            else:
                strangers = self.generator.choice(num_nodes, min(num_nodes, ACQUAINTANCES), replace=False).tolist()
                met = self.generator.permutation([*strangers, *self._near]).tolist()
            for other in met:
                if other != number:
                    table.add_or_update_node(self._ids[other], other)
            self._tables[number] = table
        return self._tables[number]

    async def search(self, searcher: int) -> None:
        """As `DHTNode.get` with ``latest``, and as the first half of a store: to the end, whatever is found."""

        async def get_neighbors(peer: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[tuple[DHTID, ...], bool]]:
            number = self._numbers[peer]
            self.asked[number] += 1
            await asyncio.sleep(self.round_trip_s())
            known = self._table(number).get_nearest_neighbors(self.key, k=BUCKET, exclude=self._ids[searcher])
            return dict.fromkeys(queries, (tuple(node_id for node_id, _ in known), False))

        own_id = self._ids[searcher]
        first = self._table(searcher).get_nearest_neighbors(self.key, k=BUCKET, exclude=own_id)
        await traverse_dht(
            [self.key],
            initial_nodes=[node_id for node_id, _ in first],
            beam_size=BUCKET,
            num_workers=WORKERS,
            queries_per_call=1,
            get_neighbors=get_neighbors,
            await_all_tasks=False,
            visited_nodes={self.key: {own_id}},
        )


_SELF = dht_pb2.NodeInfo(node_id=bytes(20))


def _dictionary(num_records: int, record: bytes) -> bytes:
    """All records as a DHT node keeps them under the mesh's key."""
    value = MSGPackSerializer.dumps(record)
    records = DictionaryDHTValue()
    with records.freeze():
        for number in range(num_records):
            records.store(peer_named(number), value, 1.7e9)
        return bytes(MSGPackSerializer.dumps(records))


def _owner_of(record: bytes) -> str:
    return open_sealed(record, "record", max_bytes=len(record))[0]
