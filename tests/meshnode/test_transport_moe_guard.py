"""hivemind's declarations beside signed records: taken where they are welcome, and never in a record's way."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.moe.expert_uid import is_valid_prefix, is_valid_uid
from hivemind.moe.server.dht_handler import _declare_experts
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time
from mesh_in_memory import MESH, key_of

from meshnode.transport.guard import RecordsAndDeclarations, SeparateStorage, SignedRecordsOnly, reserve_for_records
from protocol.declarations import Declaration, declarations_of, dht_key_of
from protocol.grid import MAX_CELL_ATTEMPTS, cell_of, grid_name
from protocol.identifiers import digest_of
from protocol.limits import MAX_RECORD_TTL_S
from protocol.records import PeerRecord, record_key, seal_record

NOW_S = 1_000_000.0
KEY = key_of("a")
CELL = cell_of(MESH.mesh_id, digest_of(b"an expert"), KEY.peer_id, 0)
RECORDS = record_key(MESH.mesh_id)
SEALED = seal_record(
    PeerRecord(
        mesh_id=MESH.mesh_id,
        peer_id=KEY.peer_id,
        peer_name="a",
        issued_at=NOW_S,
        expires_at=NOW_S + 60.0,
        leaving=False,
        experts=(),
        contributions=None,
    ),
    KEY,
)


def guard() -> RecordsAndDeclarations:
    return RecordsAndDeclarations(lambda: NOW_S)


def stored(key: str, subkey: object, value: object, expires_at: float = NOW_S + 60.0) -> DHTRecord:
    """The record as hivemind's node hands it to the validator."""
    return DHTRecord(
        DHTID.generate(key).to_bytes(), MSGPackSerializer.dumps(subkey), MSGPackSerializer.dumps(value), expires_at
    )


async def declared_by_hivemind(cells: list[str], peer_id: str) -> set[Declaration]:
    """What hivemind's own server would put into the DHT."""
    stores: list[tuple[Any, ...]] = []

    async def store_many(keys: Any, values: Any, expires_at: float, *, subkeys: Any, num_workers: int) -> None:
        stores.append((keys, subkeys, values))

    dht = SimpleNamespace(num_workers=4, peer_id=PeerID.from_base58(peer_id))
    await _declare_experts(dht, SimpleNamespace(store_many=store_many), cells, NOW_S)
    ((keys, subkeys, values),) = stores
    return {Declaration(*entry) for entry in zip(keys, subkeys, values, strict=True)}


@pytest.mark.parametrize("cell", [pytest.param(CELL, id="own"), "ffn.7", "ffn.7.0", "ffn_expert.98.76.54.32.10"])
async def test_hiveminds_own_server_makes_the_same_declarations_and_they_are_taken(cell: str) -> None:
    entries = await declared_by_hivemind([cell], KEY.peer_id)
    assert set(declarations_of(cell, KEY.peer_id)) == entries
    for entry in entries:
        assert DHTID.generate(entry.key).to_bytes() == dht_key_of(entry.key)
        assert guard().validate(stored(*entry))
        assert not SignedRecordsOnly().validate(stored(*entry)), "a node without the setting takes none"


def test_hivemind_takes_our_cells_for_uids_and_our_grids_name_for_a_prefix() -> None:
    assert is_valid_prefix(f"{grid_name(MESH.mesh_id)}.")
    for attempt in range(MAX_CELL_ATTEMPTS):
        assert is_valid_uid(cell_of(MESH.mesh_id, digest_of(b"an expert"), KEY.peer_id, attempt))


def test_what_hivemind_stores_of_places_where_nobody_is_is_refused() -> None:
    for key in ("mm_0123456789ab.3.", "ffn.", CELL):
        assert not guard().validate(stored(key, -1, None, NOW_S + MAX_RECORD_TTL_S))


def test_signed_records_are_taken_as_ever_and_nothing_else_under_their_key() -> None:
    taken = guard()
    assert taken.validate(stored(RECORDS, KEY.peer_id, SEALED))
    assert not taken.validate(stored(RECORDS, KEY.peer_id, SEALED[:-1]))
    for subkey, value in ((20, (CELL, KEY.peer_id)), (-1, (CELL, KEY.peer_id)), (KEY.peer_id, KEY.peer_id)):
        assert not taken.validate(stored(RECORDS, subkey, value))


def test_a_cell_aimed_at_the_records_key_is_refused_once_the_node_reads_it() -> None:
    """An unsigned value that expires later would otherwise hide every record in a look-up."""
    aimed = stored(RECORDS, None, KEY.peer_id)
    taken = guard()
    assert taken.validate(aimed), "nobody can tell it from a cell's own entry"
    taken.reserve(DHTID.generate(RECORDS).to_bytes())
    assert not taken.validate(aimed)
    assert taken.validate(stored(RECORDS, KEY.peer_id, SEALED))
    assert taken.validate(stored(CELL, None, KEY.peer_id))


def test_a_value_never_takes_the_place_of_what_lies_under_subkeys() -> None:
    storage, key = SeparateStorage(), DHTID.generate(RECORDS)
    soon, late = get_dht_time() + 60, get_dht_time() + 300
    assert storage.store(key, b"record", soon, subkey="a")
    assert not storage.store(key, b"wiped", late)
    assert storage.store_subkey(key, "b", b"another", soon)
    assert {name: entry.value for name, entry in storage.get(key).value.items()} == {"a": b"record", "b": b"another"}


@pytest.mark.parametrize("by", ["store", "store_subkey", "dictionary"])
def test_what_lies_under_subkeys_takes_the_place_of_a_value(by: str) -> None:
    """A value that was there first and expires later would otherwise keep every record out until then."""
    storage, key = SeparateStorage(), DHTID.generate(RECORDS)
    soon, late = get_dht_time() + 60, get_dht_time() + 300
    assert storage.store(key, b"first", late)
    if by == "store":
        assert storage.store(key, b"record", soon, subkey="a")
    elif by == "store_subkey":
        assert storage.store_subkey(key, "a", b"record", soon)
    else:
        other = SeparateStorage()
        other.store(key, b"record", soon, subkey="a")
        assert storage.store(key, other.get(key).value, soon)
    assert {name: entry.value for name, entry in storage.get(key).value.items()} == {"a": b"record"}


async def test_expired_values_are_in_nobodys_way() -> None:
    storage, key = SeparateStorage(), DHTID.generate(RECORDS)
    assert storage.store(key, b"record", get_dht_time() + 0.05, subkey="a")
    await asyncio.sleep(0.1)
    assert storage.store(key, b"value", get_dht_time() + 60)
    assert storage.get(key).value == b"value"


def test_a_key_that_is_reserved_for_records_is_cleared_of_a_value_and_keeps_records() -> None:
    key, late = DHTID.generate(RECORDS), get_dht_time() + 300
    protocol = SimpleNamespace(storage=SeparateStorage(), cache=SeparateStorage(), record_validator=guard())
    protocol.storage.store(key, b"aimed", late)
    protocol.cache.store(key, b"record", late, subkey="a")
    reserve_for_records(SimpleNamespace(protocol=protocol), RECORDS)
    assert protocol.storage.get(key) is None
    assert protocol.cache.get(key).value.get("a").value == b"record"
    assert not protocol.record_validator.validate(stored(RECORDS, None, KEY.peer_id))
