"""Identifiers are digests: the same for everyone who means the same thing, and nothing else parses as one."""

import hashlib

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedIdentifier
from protocol.identifiers import digest_of, expert_uid, parse_digest, parse_peer_id, peer_id_of

MESH, ARCHITECTURE = digest_of(b"mesh"), digest_of(b"architecture")


def test_a_digest_is_sha256_in_hexadecimal():
    assert digest_of(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert parse_digest(digest_of(b"abc")) == digest_of(b"abc")


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", "a" * 65, "\N{DIGIT ONE}" * 63 + "\u0661"]
)
def test_what_is_no_digest_is_refused(text):
    with pytest.raises(MalformedIdentifier):
        parse_digest(text)


@given(st.binary(max_size=400))
def test_peer_ids_agree_with_the_reference_base58_and_parse(public_key):
    expected = base58.b58encode(b"\x12\x20" + hashlib.sha256(public_key).digest()).decode()
    assert peer_id_of(public_key) == expected
    assert parse_peer_id(expected) == expected


@given(st.text(max_size=60))
def test_no_other_text_parses_as_a_peer_id(text):
    with pytest.raises(MalformedIdentifier):
        parse_peer_id(text)


def test_look_alikes_of_peer_ids_are_refused():
    good = peer_id_of(b"key")
    sha1_multihash = base58.b58encode(b"\x11\x20" + bytes(32)).decode()
    for text in [good[:-1], good + "1", good[:-1] + "0", good[:-1] + "l", sha1_multihash, "Qz" + good[2:]]:
        with pytest.raises(MalformedIdentifier):
            parse_peer_id(text)


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=8, unique=True), st.randoms())
def test_the_order_of_classes_does_not_matter_to_an_expert(classes, random):
    shuffled = list(classes)
    random.shuffle(shuffled)
    assert expert_uid(MESH, ARCHITECTURE, shuffled) == expert_uid(MESH, ARCHITECTURE, classes)


def test_everything_else_does_matter_to_an_expert():
    uid = expert_uid(MESH, ARCHITECTURE, ("a", "b"))
    others = {
        expert_uid(digest_of(b"another"), ARCHITECTURE, ("a", "b")),
        expert_uid(MESH, digest_of(b"another"), ("a", "b")),
        expert_uid(MESH, ARCHITECTURE, ("a",)),
        expert_uid(MESH, ARCHITECTURE, ("ab",)),
        expert_uid(MESH, ARCHITECTURE, ("a", "b"), (uid,)),
        expert_uid(MESH, ARCHITECTURE, ("a", "b"), (uid, uid)),
    }
    assert len(others | {uid}) == 7


def test_an_experts_uid_is_the_same_in_every_version():
    # Replicas find one another by it: a change here splits every mesh.
    uid = expert_uid(digest_of(b"mesh"), digest_of(b"architecture"), ("cat", "dog"))
    assert uid == "f81f3a95bcb839449d12e486715b7c63aa000d29d3cb228ae9387a3e85b461c7"


@pytest.mark.parametrize("classes", [(), ("a", "a"), ("",), ("x" * 65,), tuple(map(str, range(257)))])
def test_classes_that_cannot_be_an_experts_are_refused(classes):
    with pytest.raises(MalformedIdentifier):
        expert_uid(MESH, ARCHITECTURE, classes)
