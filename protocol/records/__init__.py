"""Signed records: what peers say of themselves in the DHT, and what they contribute to the router."""

from protocol.records.book import RecordBook
from protocol.records.contributions import (
    RouterContribution,
    Withdrawal,
    decode_contribution_index,
    encode_contribution_index,
    open_contribution,
    open_withdrawal,
    seal_contribution,
    seal_withdrawal,
)
from protocol.records.peers import (
    ExpertAdvert,
    PeerRecord,
    SpareExpert,
    fitting,
    inspect_record,
    open_record,
    record_key,
    seal_record,
)

__all__ = [
    "ExpertAdvert",
    "PeerRecord",
    "RecordBook",
    "RouterContribution",
    "SpareExpert",
    "Withdrawal",
    "decode_contribution_index",
    "encode_contribution_index",
    "fitting",
    "inspect_record",
    "open_contribution",
    "open_record",
    "open_withdrawal",
    "record_key",
    "seal_contribution",
    "seal_record",
    "seal_withdrawal",
]
