"""Values of everything that crosses the wire: an example of every error, strategies for every message."""

from hypothesis import strategies as st

from protocol import errors, limits, messages
from protocol.identifiers import digest_of, peer_id_of
from protocol.messages import RoundId

__all__ = ["DIGEST", "ERRORS", "MESSAGES", "PEER"]

digests = st.binary(max_size=4).map(digest_of)
names = st.text(min_size=1, max_size=limits.MAX_NAME_CHARS)
counters = st.integers(0, limits.MAX_COUNTER)
moments = st.floats(0, limits.MAX_MOMENT_S)
class_names = st.lists(names, min_size=1, max_size=5, unique=True).map(lambda classes: tuple(sorted(classes)))
round_ids = st.builds(RoundId, digests, counters, st.integers(0, limits.MAX_ATTEMPTS_PER_ROUND - 1))
outcomes = st.sampled_from(["aborted", "committed", "pending", "unknown"])
blob_offsets = st.integers(0, limits.MAX_BLOB_BYTES)
error_data = st.dictionaries(st.text(max_size=5), st.none() | st.integers(0, 9) | st.text(max_size=5), max_size=3)

MESSAGES = {
    messages.Hello: st.builds(messages.Hello, st.none() | digests),
    messages.HelloReply: st.builds(messages.HelloReply, st.none() | digests, st.none() | names, names, names, moments),
    messages.BlobGet: st.builds(messages.BlobGet, digests, blob_offsets, st.integers(1, limits.BLOB_CHUNK_BYTES)),
    messages.BlobPart: st.builds(messages.BlobPart, digests, blob_offsets, blob_offsets),
    messages.Forward: st.builds(messages.Forward, digests),
    messages.ForwardReply: st.builds(messages.ForwardReply, digests, counters, digests, class_names),
    messages.RoundProposal: st.builds(messages.RoundProposal, round_ids, digests, st.booleans(), st.booleans()),
    messages.RoundAttestation: st.builds(messages.RoundAttestation, round_ids, st.booleans()),
    messages.RoundOutcomeQuery: st.builds(messages.RoundOutcomeQuery, round_ids),
    messages.RoundOutcome: st.builds(messages.RoundOutcome, round_ids, outcomes),
    messages.Ack: st.just(messages.Ack()),
    messages.ErrorReply: st.builds(messages.ErrorReply, st.text(max_size=9), st.text(max_size=9), error_data),
}
"""Values of every message, within the bounds of its fields."""

PEER, DIGEST = peer_id_of(b"key"), digest_of(b"bytes")
ERRORS = [
    errors.BadSignature("record"),
    errors.BlobCorrupt(DIGEST),
    errors.Busy(0.25),
    errors.CallTimeout(PEER, "forward", 3.0),
    errors.ClockSkewed(-12.5),
    errors.Draining(),
    errors.FrameTooLarge(10, 9),
    errors.MalformedAddress("x", "no"),
    errors.MalformedIdentifier("digest", "x", "no"),
    errors.MalformedMessage("keys", "values", reason="lengths differ"),
    errors.MalformedSpec("no"),
    errors.MalformedTensor("features", "no"),
    errors.MeshMismatch(DIGEST, None),
    errors.NotReady("no mesh yet"),
    errors.NoRoute(("cat",), (DIGEST,)),
    errors.PeerUnreachable(PEER),
    errors.RecordRefused(errors.RecordRefusal.REPLAYED, "3 s later"),
    errors.RemoteFailure(PEER, "boom", "it broke"),
    errors.RowsUnanswered((0, 3), (DIGEST,)),
    errors.UnknownBlob(DIGEST),
    errors.UnknownExpert(DIGEST),
    errors.UnknownMethod("dance"),
]
"""One of every code."""
