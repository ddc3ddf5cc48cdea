"""A node stores for others nothing but peers' own signed records, however the bytes are made."""

from typing import Any

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st
from mesh_in_memory import MESH, key_of

from meshnode.transport.guard import SignedRecordsOnly
from protocol.codec import encode
from protocol.identifiers import MeshId, digest_of
from protocol.limits import MAX_RECORD_BYTES, MAX_RECORD_TTL_S
from protocol.records import PeerRecord, record_key, seal_record
from protocol.signing import SigningKey, seal

NOW_S = 1_000_000.0
KEY, OTHER = key_of("a"), key_of("b")
GUARD = SignedRecordsOnly()


def record_of(key: SigningKey = KEY, *, mesh_id: MeshId = MESH.mesh_id, ttl_s: float = 60.0) -> PeerRecord:
    return PeerRecord(
        mesh_id=mesh_id,
        peer_id=key.peer_id,
        peer_name="a",
        issued_at=NOW_S,
        expires_at=NOW_S + ttl_s,
        leaving=False,
        experts=(),
        contributions=None,
    )


def stored(
    value: object,
    *,
    subkey: object = KEY.peer_id,
    key: str = record_key(MESH.mesh_id),
    expires_at: float = NOW_S + 60.0,
) -> DHTRecord:
    """The record as hivemind's node hands it to the validator."""
    return DHTRecord(
        DHTID.generate(key).to_bytes(), MSGPackSerializer.dumps(subkey), MSGPackSerializer.dumps(value), expires_at
    )


SEALED = seal_record(record_of(), KEY)


def test_a_peers_own_record_in_its_place_is_stored() -> None:
    assert GUARD.validate(stored(SEALED))


@pytest.mark.parametrize("position", range(0, len(SEALED), 37))
def test_a_record_with_any_bit_changed_is_refused(position: int) -> None:
    forged = bytearray(SEALED)
    forged[position] ^= 1
    assert not GUARD.validate(stored(bytes(forged)))


def test_a_record_under_another_peers_subkey_is_refused() -> None:
    assert not GUARD.validate(stored(SEALED, subkey=OTHER.peer_id))


def test_a_record_that_another_key_signed_is_refused_under_either_subkey() -> None:
    forged = seal(OTHER, "record", encode(record_of(KEY)))
    for subkey in (KEY.peer_id, OTHER.peer_id):
        assert not GUARD.validate(stored(forged, subkey=subkey))


def test_a_signature_made_for_something_else_is_refused() -> None:
    assert not GUARD.validate(stored(seal(KEY, "contribution", encode(record_of()))))


@pytest.mark.parametrize("key", ["", "modulemesh/1/peers", record_key(MeshId(digest_of(b"another mesh")))])
def test_a_record_under_a_key_that_is_not_its_meshs_is_refused(key: str) -> None:
    assert not GUARD.validate(stored(SEALED, key=key))


def test_a_lease_longer_than_allowed_is_refused() -> None:
    overlong = seal(KEY, "record", encode(record_of(ttl_s=MAX_RECORD_TTL_S + 1)))
    assert not GUARD.validate(stored(overlong, expires_at=NOW_S + MAX_RECORD_TTL_S + 1))


@pytest.mark.parametrize("expires_at", [NOW_S, NOW_S + 59.999, NOW_S + 61, NOW_S * 2, float("inf"), float("nan")])
def test_an_expiry_other_than_the_signed_one_is_refused(expires_at: float) -> None:
    assert not GUARD.validate(stored(SEALED, expires_at=expires_at))


def test_a_value_without_a_subkey_is_refused() -> None:
    key = DHTID.generate(record_key(MESH.mesh_id)).to_bytes()
    for subkey in (b"", MSGPackSerializer.dumps(None), MSGPackSerializer.dumps("")):
        assert not GUARD.validate(DHTRecord(key, subkey, MSGPackSerializer.dumps(SEALED), NOW_S + 60.0))


def test_more_bytes_than_a_record_may_have_are_refused() -> None:
    assert not GUARD.validate(stored(SEALED + bytes(MAX_RECORD_BYTES)))
    assert not GUARD.validate(stored(bytes(100 * MAX_RECORD_BYTES)))


@pytest.mark.parametrize(
    "value",
    [
        SEALED.hex(),
        [SEALED],
        {"value": SEALED},
        {KEY.peer_id: SEALED},
        None,
        1,
        1.5,
        True,
        msgpack.ExtType(80, SEALED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_a_byte_string_is_refused_as_value(value: Any) -> None:
    packed = msgpack.packb(value)
    key = DHTID.generate(record_key(MESH.mesh_id)).to_bytes()
    assert not GUARD.validate(DHTRecord(key, MSGPackSerializer.dumps(KEY.peer_id), packed, NOW_S + 60.0))


@pytest.mark.parametrize(
    "subkey",
    [KEY.peer_id.encode(), 7, [KEY.peer_id], {"peer": KEY.peer_id}, "self", None],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_a_peer_id_is_refused_as_subkey(subkey: Any) -> None:
    packed = msgpack.packb(subkey)
    key = DHTID.generate(record_key(MESH.mesh_id)).to_bytes()
    assert not GUARD.validate(DHTRecord(key, packed, MSGPackSerializer.dumps(SEALED), NOW_S + 60.0))


def nested_extensions(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = msgpack.packb(msgpack.ExtType(64, data))
    return data


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 100_000,
        b"\x81" * 100_000,
        nested_extensions(3_000),
        b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x40",
    ],
    ids=["arrays", "maps", "extensions", "announced array", "announced extension"],
)
def test_a_msgpack_bomb_is_refused_and_never_unfolded(bomb: bytes) -> None:
    key = DHTID.generate(record_key(MESH.mesh_id)).to_bytes()
    subkey, value = MSGPackSerializer.dumps(KEY.peer_id), MSGPackSerializer.dumps(SEALED)
    assert not GUARD.validate(DHTRecord(key, subkey, bomb, NOW_S + 60.0))
    assert not GUARD.validate(DHTRecord(key, bomb, value, NOW_S + 60.0))
    # The same behind the door: as the content of the byte string, and signed by a real key.
    assert not GUARD.validate(stored(bomb))
    assert not GUARD.validate(stored(seal(KEY, "record", bomb[:8_000])))


@given(subkey=st.binary(max_size=80), value=st.binary(max_size=200))
def test_garbage_is_refused_without_an_exception(subkey: bytes, value: bytes) -> None:
    key = DHTID.generate(record_key(MESH.mesh_id)).to_bytes()
    assert not GUARD.validate(DHTRecord(key, subkey, MSGPackSerializer.dumps(SEALED), NOW_S + 60.0))
    assert not GUARD.validate(DHTRecord(key, MSGPackSerializer.dumps(KEY.peer_id), value, NOW_S + 60.0))
