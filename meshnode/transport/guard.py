"""What this node stores in the DHT for others: signed peer records under their own key, and nothing else.

hivemind's DHT stores whatever anyone sends. This validator runs on every store and every answer to a look-up: the
subkey must be a peer id, the value a record signed by that peer, the key the one that the record's mesh has, the
expiry the signed one, and there are no values without a subkey. A replay of an older record loses by its earlier
expiry.

A node that is set to serve hivemind's own clients also takes their entries about experts, which are unsigned. Those
never come in the way of records: not at a key that this node reads records from, and not in the storage, where an
entry without a subkey would otherwise wipe out all that lies under its key.
"""

from collections.abc import Callable
from typing import Any

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils.timed_storage import get_dht_time

from protocol.declarations import is_declaration
from protocol.errors import MalformedIdentifier, RecordRefused
from protocol.identifiers import parse_peer_id
from protocol.limits import MAX_RECORD_BYTES
from protocol.records import inspect_record, record_key

__all__ = ["RecordsAndDeclarations", "SeparateStorage", "SignedRecordsOnly", "reserve_for_records"]


class SignedRecordsOnly(RecordValidatorBase):  # type: ignore[misc]  # hivemind carries no types
    """Refuses every DHT record that is not a peer's own, signed and where it belongs."""

    def validate(self, record: DHTRecord) -> bool:
        subkey, value = _unpack(record.subkey), _unpack(record.value)
        if not isinstance(subkey, str) or not isinstance(value, bytes):
            return False
        try:
            claimed = inspect_record(value, subkey=parse_peer_id(subkey))
        except (RecordRefused, MalformedIdentifier):
            return False
        in_its_place = DHTID.generate(record_key(claimed.mesh_id)).to_bytes() == record.key
        return bool(in_its_place and claimed.expires_at == record.expiration_time)


class RecordsAndDeclarations(SignedRecordsOnly):
    """Takes hivemind's declarations too, if they are well formed (`protocol.declarations`).

    Args:
        now_s: The DHT's time.
    """

    def __init__(self, now_s: Callable[[], float] = get_dht_time) -> None:
        self._now_s = now_s
        self._reserved: set[bytes] = set()

    def reserve(self, key: bytes) -> None:
        """Take nothing but signed records under this key, even if a peer answers a look-up with something else."""
        self._reserved.add(key)

    def validate(self, record: DHTRecord) -> bool:
        if super().validate(record):
            return True
        return record.key not in self._reserved and is_declaration(
            record.key, record.subkey, record.value, record.expiration_time, now_s=self._now_s()
        )


class SeparateStorage(DHTLocalStorage):  # type: ignore[misc]  # hivemind carries no types
    """Keeps values without a subkey from the keys under which there are values with one; those come first.

    Where a declared cell lies cannot be checked, so anyone can aim one at the key of a mesh's records. In hivemind's
    own storage it would replace them all, and keep new ones out until it expires.
    """

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        if subkey is not None:
            return self.store_subkey(key, subkey, value, expiration_time)
        if isinstance(value, DictionaryDHTValue):
            self.make_way(key)
        elif self._holds_subkeys(key):
            return False
        return bool(super().store(key, value, expiration_time))

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        self.make_way(key)
        return bool(super().store_subkey(key, subkey, value, expiration_time))

    def make_way(self, key: DHTID) -> None:
        """Forget a value without a subkey that lies under this key."""
        if key in self and not self._holds_subkeys(key):
            del self[key]

    def _holds_subkeys(self, key: DHTID) -> bool:
        present = self.get(key)
        return present is not None and isinstance(present.value, DictionaryDHTValue)


def reserve_for_records(dht: DHTNode, key: str) -> None:
    """Let no declaration count under a key from now on, in case that this node takes any: neither those that are told
    it nor one that it keeps already."""
    validator, key_id = dht.protocol.record_validator, DHTID.generate(key)
    if isinstance(validator, RecordsAndDeclarations):
        validator.reserve(key_id.to_bytes())
    for storage in (dht.protocol.storage, dht.protocol.cache):
        if isinstance(storage, SeparateStorage):
            storage.make_way(key_id)


def _unpack(data: bytes) -> Any:
    """A msgpack string or byte string, None for anything else; nothing nested is ever decoded."""
    try:
        return msgpack.unpackb(
            data,
            max_str_len=MAX_RECORD_BYTES,
            max_bin_len=MAX_RECORD_BYTES,
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException):
        return None
