"""A signature proves who wrote what for which purpose; identities are the ones libp2p knows."""

import msgpack
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hivemind.p2p import P2P, PeerID
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadSignature, FrameTooLarge, MalformedIdentifier, MalformedMessage
from protocol.signing import SigningKey, open_sealed, peer_id_of, seal, verify


def test_hivemind_reads_our_identity_and_finds_the_same_peer(key):
    assert PeerID.from_identity(key.to_libp2p()).to_base58() == key.peer_id == peer_id_of(key.public_bytes)


def test_we_read_hiveminds_identity_and_find_the_same_peer(tmp_path):
    path = tmp_path / "identity"
    P2P.generate_identity(str(path))
    key = SigningKey.from_libp2p(path.read_bytes())
    assert key.peer_id == PeerID.from_identity(path.read_bytes()).to_base58()
    assert key.to_libp2p() == path.read_bytes()


def private_der(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def test_what_is_no_identity_is_refused_without_showing_it(key):
    identity = key.to_libp2p()
    short_rsa = private_der(rsa.generate_private_key(65537, key_size=1024))
    curve = private_der(ec.generate_private_key(ec.SECP256R1()))
    for bad in [
        b"",
        identity[:-1],
        identity + b"\0",
        b"\x08\x01" + identity[2:],
        b"\x08\x00\x12" + bytes([len(short_rsa) & 0x7F | 0x80, len(short_rsa) >> 7]) + short_rsa,
        b"\x08\x00\x12" + bytes([len(curve) & 0x7F | 0x80, len(curve) >> 7]) + curve,
        key.public_bytes,
    ]:
        with pytest.raises(MalformedIdentifier) as refused:
            SigningKey.from_libp2p(bad)
        assert refused.value.text == ""


def test_a_key_does_not_show_itself(key):
    assert repr(key) == f"SigningKey({key.peer_id})"


def test_a_signature_holds_for_its_key_domain_and_payload_only(key, other_key):
    signature = key.sign("record", b"payload")
    verify(key.public_bytes, "record", b"payload", signature)
    for public_bytes, domain, payload, tried in [
        (other_key.public_bytes, "record", b"payload", signature),
        (key.public_bytes, "contribution", b"payload", signature),
        (key.public_bytes, "record", b"another", signature),
        (key.public_bytes, "record", b"payload", signature[:-1] + bytes([signature[-1] ^ 1])),
        (key.public_bytes, "record", b"payload", b""),
        (key.public_bytes, "recor", b"dpayload", signature),
        (key.public_bytes, "recor", b"d\0payload", signature),
        (b"", "record", b"payload", signature),
        (key.public_bytes + b"\0", "record", b"payload", signature),
        (key.to_libp2p(), "record", b"payload", signature),
    ]:
        with pytest.raises(BadSignature):
            verify(public_bytes, domain, payload, tried)


@pytest.mark.parametrize(("key_size", "exponent"), [(1024, 65537), (2048, 3)])
def test_weak_keys_are_refused_though_their_signatures_hold(key_size, exponent):
    weak = SigningKey(rsa.generate_private_key(exponent, key_size=key_size))
    with pytest.raises(BadSignature):
        verify(weak.public_bytes, "record", b"payload", weak.sign("record", b"payload"))


def test_sealed_bytes_tell_who_signed_what(key):
    assert open_sealed(seal(key, "record", b"payload"), "record") == (key.peer_id, b"payload")
    with pytest.raises(BadSignature):
        open_sealed(seal(key, "record", b"payload"), "contribution")


def test_sealed_bytes_are_limited_on_both_sides(key):
    with pytest.raises(FrameTooLarge):
        seal(key, "record", bytes(limits.MAX_RECORD_BYTES))
    sealed = seal(key, "record", bytes(limits.MAX_RECORD_BYTES), max_bytes=2 * limits.MAX_RECORD_BYTES)
    with pytest.raises(FrameTooLarge):
        open_sealed(sealed, "record")


def test_no_single_byte_of_sealed_bytes_can_be_changed(key):
    sealed = seal(key, "record", b"payload")
    for place in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place] ^= 1
        with pytest.raises((BadSignature, MalformedMessage)):
            open_sealed(bytes(damaged), "record")


@given(st.binary(max_size=100), st.tuples(st.binary(max_size=40), st.binary(max_size=9), st.binary(max_size=9)))
def test_garbage_is_refused_with_the_documented_errors(data, parts):
    with pytest.raises((BadSignature, MalformedMessage)):
        open_sealed(data, "record")
    with pytest.raises((BadSignature, MalformedMessage)):
        open_sealed(msgpack.packb(parts), "record")
