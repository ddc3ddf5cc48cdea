"""Signatures of peers, made with the very key that their libp2p identity is made of.

A peer id is the hash of a public key, so whoever can verify a signature knows which peer signed: no
registry, no authority. Keys are RSA because hivemind's identities are; the scheme is RSA-PSS with SHA-256
(RFC 8017, section 8.1).

libp2p wraps keys in a protobuf of two fields, written by hand here: ``{1: key type, RSA = 0; 2: DER bytes}``
(https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md).
"""

from typing import Annotated, Final, Self

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from protocol import limits
from protocol.codec import decode_as, encode
from protocol.errors import BadSignature, FrameTooLarge, MalformedIdentifier
from protocol.identifiers import peer_id_of
from protocol.wiretypes import PeerId

__all__ = ["Signed", "SigningKey", "open_sealed", "peer_id_of", "seal", "verify"]

_KEY_BITS: Final = range(2048, 4097)
"""Below, a key can be forged; above, verifying one costs an honest peer too much."""
_EXPONENT: Final = 65537
_HASH: Final = hashes.SHA256()
_PADDING: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
_RSA_FIELD: Final = b"\x08\x00"
_DATA_TAG: Final = b"\x12"


class SigningKey:
    """A peer's private RSA key. Its ``repr`` shows the peer id only."""

    def __init__(self, private_key: rsa.RSAPrivateKey) -> None:
        self._private_key = private_key
        der = private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public_bytes: Final = _to_protobuf(der)
        """The libp2p ``PublicKey`` protobuf with the key as SubjectPublicKeyInfo."""
        self.peer_id: Final = peer_id_of(self.public_bytes)

    @classmethod
    def generate(cls) -> Self:
        """A new key of 2,048 bits; takes a tenth of a second."""
        return cls(rsa.generate_private_key(_EXPONENT, key_size=2048))

    @classmethod
    def from_libp2p(cls, identity: bytes) -> Self:
        """The key in an identity file as p2pd reads it: the ``PrivateKey`` protobuf with PKCS #1.

        Raises:
            MalformedIdentifier: Not such a file (an interrupted write leaves an empty one), or a key of
                another kind. The message says nothing of the content.
        """
        try:
            key = serialization.load_der_private_key(_from_protobuf(identity), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise MalformedIdentifier("private key", "", "not a libp2p RSA private key") from exc
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size not in _KEY_BITS:
            raise MalformedIdentifier("private key", "", "not an RSA key of 2,048 to 4,096 bits")
        return cls(key)

    def to_libp2p(self) -> bytes:
        """The identity file's content that `from_libp2p` and hivemind's p2pd read. Secret."""
        der = self._private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return _to_protobuf(der)

    def sign(self, domain: str, payload: bytes) -> bytes:
        """A signature over ``payload`` that counts in ``domain`` only. Takes about a millisecond."""
        return self._private_key.sign(_to_be_signed(domain, payload), _PADDING, _HASH)

    def __repr__(self) -> str:
        return f"SigningKey({self.peer_id})"


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """A payload with the proof of who wrote it."""

    public_key: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_PUBLIC_KEY_BYTES)]
    payload: bytes
    signature: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_SIGNATURE_BYTES)]


def verify(public_bytes: bytes, domain: str, payload: bytes, signature: bytes) -> None:
    """Returns if the key of ``public_bytes`` (a libp2p ``PublicKey``) signed ``payload`` in ``domain``.

    Raises:
        BadSignature: It did not, or the key is no RSA key of 2,048 to 4,096 bits with the exponent 65,537.
    """
    key = _load_public_key(public_bytes, domain)
    try:
        key.verify(signature, _to_be_signed(domain, payload), _PADDING, _HASH)
    except InvalidSignature as exc:
        raise BadSignature(domain) from exc


def seal(key: SigningKey, domain: str, payload: bytes, *, max_bytes: int = limits.MAX_RECORD_BYTES) -> bytes:
    """``payload`` with the key's signature, as bytes for `open_sealed`.

    Raises:
        FrameTooLarge: The result is longer than ``max_bytes``.
    """
    sealed = encode(Signed(key.public_bytes, payload, key.sign(domain, payload)))
    if len(sealed) > max_bytes:
        raise FrameTooLarge(len(sealed), max_bytes)
    return sealed


def open_sealed(
    data: bytes | memoryview, domain: str, *, max_bytes: int = limits.MAX_RECORD_BYTES
) -> tuple[PeerId, bytes]:
    """``(who signed, payload)`` of sealed bytes whose signature holds.

    Raises:
        FrameTooLarge: Longer than ``max_bytes``.
        MalformedMessage: Not sealed bytes.
        BadSignature: The signature does not fit the payload, the domain or the key.
    """
    signed = decode_as(data, Signed, max_bytes=max_bytes)
    verify(signed.public_key, domain, signed.payload, signed.signature)
    return peer_id_of(signed.public_key), signed.payload


def _to_be_signed(domain: str, payload: bytes) -> bytes:
    """Signatures made for one purpose are worth nothing for another: no domain contains the zero byte."""
    return b"modulemesh/" + domain.encode() + b"\0" + payload


def _load_public_key(public_bytes: bytes, domain: str) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_der_public_key(_from_protobuf(public_bytes))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise BadSignature(domain, "not a libp2p RSA public key") from exc
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in _KEY_BITS:
        raise BadSignature(domain, "not an RSA key of 2,048 to 4,096 bits")
    if key.public_numbers().e != _EXPONENT:
        raise BadSignature(domain, f"the public exponent is not {_EXPONENT}")
    return key


def _to_protobuf(der: bytes) -> bytes:
    length, varint = len(der), bytearray()
    while length >= 0x80:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return _RSA_FIELD + _DATA_TAG + bytes(varint) + der


def _from_protobuf(data: bytes) -> bytes:
    """The DER bytes of a key protobuf; only the one canonical encoding is taken, so a key has one peer id.

    Raises:
        ValueError: Anything else.
    """
    # 2 + 1 + 2 bytes precede every DER of 128 to 16,383 bytes, thus every RSA key that is long enough.
    der = data[5:]
    if not 0x80 <= len(der) < 0x4000 or _to_protobuf(der) != data:
        raise ValueError("not a libp2p RSA key")
    return der
