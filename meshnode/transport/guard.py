"""What this node stores in the DHT for others: signed peer records under their own key, and nothing else.

hivemind's DHT stores whatever anyone sends. This validator runs on every store and every answer to a look-up: the
subkey must be a peer id, the value a record signed by that peer, the key the one that the record's mesh has, the
expiry the signed one, and there are no values without a subkey. A replay of an older record loses by its earlier
expiry.
"""

from typing import Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from protocol.errors import MalformedIdentifier, RecordRefused
from protocol.identifiers import parse_peer_id
from protocol.limits import MAX_RECORD_BYTES
from protocol.records import inspect_record, record_key

__all__ = ["SignedRecordsOnly"]


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
