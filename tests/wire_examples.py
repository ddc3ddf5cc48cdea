"""Values of everything that crosses the wire: an example of every error, strategies for every message."""

from typing import Any

from hypothesis import strategies as st

from protocol import errors, limits, messages
from protocol.identifiers import ExpertUid, digest_of, peer_id_of
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
texts = st.text(max_size=9)
spans = st.floats(-limits.MAX_MOMENT_S, limits.MAX_MOMENT_S)
error_values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts
error_lists = st.lists(error_values, max_size=4).map(tuple)
error_data = st.dictionaries(texts, error_values | error_lists, max_size=limits.MAX_ERROR_FIELDS)
error_replies = st.builds(messages.ErrorReply, texts, texts, error_data)
peers = st.binary(max_size=4).map(peer_id_of)


def _forwards(experts: list[ExpertUid]) -> st.SearchStrategy[messages.Forward]:
    num_rows = st.lists(counters, min_size=len(experts), max_size=len(experts))
    return st.builds(messages.Forward, st.just(tuple(experts)), st.just(()) | num_rows.map(tuple))


expert_lists = st.lists(digests, min_size=1, max_size=limits.MAX_EXPERTS_PER_CALL, unique=True)
expert_answers = st.builds(messages.ExpertAnswer, counters, digests, class_names)
answer_lists = st.lists(expert_answers | error_replies, min_size=1, max_size=limits.MAX_EXPERTS_PER_CALL)
infer_calls = st.builds(messages.InferCall, digests, peers, names, counters, spans, st.none() | texts)

member_lists = st.lists(peers, min_size=1, max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
round_outcomes = st.builds(messages.RoundOutcome, round_ids, outcomes)
round_proposals = st.builds(
    messages.RoundProposal,
    round_ids,
    member_lists,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    counters,
    digests,
    names,
    st.none() | digests,
    st.floats(1e-9, limits.MAX_COUNTER),
)
round_attestations = st.builds(
    messages.RoundAttestation, round_ids, st.booleans(), st.lists(peers, max_size=5).map(tuple)
)
round_words = round_proposals | round_attestations | st.builds(messages.RoundOutcomeQuery, round_ids)
round_answers = round_proposals | round_outcomes | st.just(messages.Ack())


def _some(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, min_size=1, max_size=limits.MAX_ROUNDS_PER_CALL).map(tuple)


MESSAGES = {
    messages.Hello: st.builds(messages.Hello, st.none() | digests),
    messages.HelloReply: st.builds(messages.HelloReply, st.none() | digests, st.none() | names, names, names, moments),
    messages.BlobGet: st.builds(messages.BlobGet, digests, blob_offsets, st.integers(1, limits.BLOB_CHUNK_BYTES)),
    messages.BlobPart: st.builds(messages.BlobPart, digests, blob_offsets, blob_offsets),
    messages.Forward: expert_lists.flatmap(_forwards),
    messages.ForwardReply: st.builds(messages.ForwardReply, answer_lists.map(tuple)),
    messages.Infer: st.builds(
        messages.Infer, st.none() | st.integers(1, limits.MAX_EXPERTS_PER_RECORD), st.floats(0.001, 3600.0)
    ),
    messages.InferReply: st.builds(
        messages.InferReply, st.lists(names, max_size=5).map(tuple), st.lists(infer_calls, max_size=5).map(tuple)
    ),
    messages.RoundTalk: st.builds(messages.RoundTalk, _some(round_words)),
    messages.RoundTalkReply: st.builds(messages.RoundTalkReply, _some(round_answers)),
    messages.RoundParts: st.builds(messages.RoundParts, _some(round_ids)),
    messages.Ack: st.just(messages.Ack()),
    messages.ErrorReply: error_replies,
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
    errors.MalformedLineage("no"),
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
