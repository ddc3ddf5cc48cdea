"""hivemind's entries about experts: which there are for a cell, and that nothing else passes for one."""

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.declarations import (
    MAX_DECLARATION_BYTES,
    Declaration,
    declarations_of,
    dht_key_of,
    is_declaration,
)
from protocol.errors import MalformedIdentifier
from protocol.grid import parse_any_peer_id
from protocol.identifiers import peer_id_of
from protocol.limits import MAX_RECORD_TTL_S

NOW_S = 1_000_000.0
PEER = peer_id_of(b"a key")
ED25519 = "12D3KooWLhHHPJbXxE2XSTMMhCYMfU1VnPb914j2vRuSj1hZFhga"
CELL = "mm_0123456789ab.3.20.200"

cells = st.from_regex(r"[a-z_]{1,20}(\.(0|[1-9][0-9]{0,5})){1,8}", fullmatch=True)


def packed(value: object) -> bytes:
    """As hivemind packs a value: a tuple is the extension 0x40 of a packed list."""
    if isinstance(value, tuple):
        return bytes(msgpack.packb(msgpack.ExtType(0x40, packed(list(value)))))
    return bytes(msgpack.packb(value))


def accepted(entry: Declaration, **change: Any) -> bool:
    """Whether the entry is one as it would be stored, with some of its bytes changed."""
    stored = {
        "key": dht_key_of(entry.key),
        "subkey": packed(entry.subkey),
        "value": packed(entry.value),
        "expires_at": NOW_S + 60.0,
    }
    return is_declaration(**(stored | change), now_s=NOW_S)


def test_a_cell_is_declared_under_itself_and_under_each_of_its_prefixes() -> None:
    assert declarations_of(CELL, PEER) == (
        (CELL, None, PEER),
        ("mm_0123456789ab.3.20.", 200, (CELL, PEER)),
        ("mm_0123456789ab.3.", 20, (CELL, PEER)),
    )
    assert declarations_of("ffn.7", PEER) == (("ffn.7", None, PEER), ("ffn.7.", -1, ("ffn.7", PEER)))
    with pytest.raises(MalformedIdentifier):
        declarations_of("ffn", PEER)


@given(cell=cells, peer_id=st.sampled_from([PEER, ED25519]), ttl_s=st.floats(-1e6, MAX_RECORD_TTL_S))
def test_what_declares_a_cell_is_accepted(cell: str, peer_id: str, ttl_s: float) -> None:
    for entry in declarations_of(cell, peer_id):
        assert accepted(entry, expires_at=NOW_S + ttl_s)


ENTRIES = (*declarations_of(CELL, PEER), *declarations_of("ffn.7", ED25519))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "expires_at", [math.inf, -math.inf, math.nan, NOW_S + MAX_RECORD_TTL_S + 0.1, NOW_S + 1e9, 1e308]
)
def test_an_entry_that_lives_too_long_is_refused(entry: Declaration, expires_at: float) -> None:
    assert accepted(entry)
    assert not accepted(entry, expires_at=expires_at)


@given(entry=st.sampled_from(ENTRIES), data=st.data())
def test_an_entry_with_any_byte_changed_is_refused_or_declares_something_else_in_its_place(
    entry: Declaration, data: st.DataObject
) -> None:
    value = bytearray(packed(entry.value))
    position = data.draw(st.integers(0, len(value) - 1))
    value[position] ^= data.draw(st.integers(1, 255))
    if accepted(entry, value=bytes(value)):
        changed = msgpack.unpackb(bytes(value), ext_hook=lambda code, content: tuple(msgpack.unpackb(content)))
        cell, peer_id = (CELL, changed) if entry.subkey is None else changed
        assert peer_id == parse_any_peer_id(peer_id)
        assert entry.subkey is None or (entry.key, entry.subkey, changed) in declarations_of(cell, peer_id)
    other = bytearray(dht_key_of(entry.key))
    other[position % 20] ^= 1
    assert accepted(entry, key=bytes(other)) == (entry.subkey is None), "only a cell's own place cannot be checked"


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.subkey is not None])
def test_a_prefixs_entry_lies_under_its_prefix_and_its_coordinate_only(entry: Declaration) -> None:
    for key in ("mm_0123456789ab.", CELL, "mm_0123456789ab.3.21.", "mm_0123456789ab.4.", "modulemesh/1/peers"):
        assert not accepted(entry, key=dht_key_of(key))
    for subkey in (0, 3, 201, -2, None, "20", True, 20.0, [20], (20,), {"a": 1}):
        assert accepted(entry, subkey=packed(subkey)) is (subkey == entry.subkey and type(subkey) is int)
    # One way to write a number: otherwise two subkeys would be one.
    assert not accepted(entry, subkey=b"\xd3" + (entry.subkey or 0).to_bytes(8, "big", signed=True))


NOT_A_CELLS_VALUE: list[object] = [
    None,
    True,
    7,
    1.5,
    "",
    "nobody",
    PEER[:-1],
    PEER.encode(),
    [PEER],
    (PEER,),
    {PEER: PEER},
    msgpack.ExtType(0x50, packed(PEER)),
]


@pytest.mark.parametrize("value", NOT_A_CELLS_VALUE, ids=repr)
def test_a_cells_entry_is_a_peer_id_and_nothing_else(value: object) -> None:
    assert not accepted(ENTRIES[0], value=packed(value))


NOT_A_PREFIXS_VALUE: list[object] = [
    None,
    CELL,
    [CELL, PEER],
    (CELL,),
    (CELL, PEER, PEER),
    (PEER, CELL),
    (CELL, "nobody"),
    (CELL, PEER.encode()),
    (CELL, None),
    ("mm_0123456789ab.3.21.200", PEER),
    ("mm_0123456789ab", PEER),
    ((CELL, PEER), PEER),
    {"uid": CELL},
    msgpack.ExtType(0x41, packed([CELL, PEER])),
    msgpack.ExtType(0x50, packed([CELL, PEER])),
]


@pytest.mark.parametrize("value", NOT_A_PREFIXS_VALUE, ids=repr)
def test_a_prefixs_entry_is_a_pair_of_cell_and_peer_id_and_nothing_else(value: object) -> None:
    """The first is hivemind's mark that nobody is there, which its clients store with the subkey -1."""
    assert not accepted(ENTRIES[1], value=packed(value))
    assert not accepted(ENTRIES[1], value=packed(value), subkey=packed(-1))


def test_the_same_in_other_bytes_is_refused() -> None:
    """hivemind would read them alike; a store of one form each needs no reader that does."""
    string = b"\xda" + len(PEER).to_bytes(2, "big") + PEER.encode()
    assert msgpack.unpackb(string) == PEER
    assert not accepted(ENTRIES[0], value=string)
    content = packed([CELL, PEER])
    for long_form in (b"\xc8" + len(content).to_bytes(2, "big"), b"\xc9" + len(content).to_bytes(4, "big")):
        assert not accepted(ENTRIES[1], value=long_form + b"\x40" + content)
    assert not accepted(ENTRIES[1], value=packed((CELL, PEER)) + b"\xc0")


def nested_extensions(depth: int) -> bytes:
    data = packed([CELL, PEER])
    for _ in range(depth):
        data = bytes(msgpack.packb(msgpack.ExtType(0x40, data)))
    return data


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 100_000,
        b"\x91" * (MAX_DECLARATION_BYTES - 1),
        b"\x81" * (MAX_DECLARATION_BYTES - 1),
        nested_extensions(2),
        nested_extensions(60),
        nested_extensions(3_000),
        b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x40",
        bytes(MAX_DECLARATION_BYTES + 1),
    ],
    ids=["arrays", "arrays that fit", "maps", "two", "sixty", "extensions", "announced array", "announced", "zeros"],
)
def test_a_msgpack_bomb_is_refused_and_never_unfolded(bomb: bytes) -> None:
    for entry in ENTRIES:
        assert not accepted(entry, value=bomb)
        assert not accepted(entry, subkey=bomb)


@given(subkey=st.sampled_from([b"\xc0", b"\x14", b""]) | st.binary(max_size=20), value=st.binary(max_size=200))
def test_garbage_is_refused_without_an_exception(subkey: bytes, value: bytes) -> None:
    for entry in ENTRIES:
        assert not accepted(entry, subkey=subkey, value=value)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=60) | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    )
)
def test_no_other_value_of_msgpack_passes(value: object) -> None:
    for entry in ENTRIES:
        assert not accepted(entry, value=packed(value))
