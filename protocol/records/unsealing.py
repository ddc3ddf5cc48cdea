"""The steps common to every signed record: from sealed bytes to a typed payload and its signer."""

from typing import TypeVar

from protocol.codec import decode_as
from protocol.errors import BadSignature, FrameTooLarge, MalformedMessage, RecordRefusal, RecordRefused
from protocol.limits import MAX_CLOCK_SKEW_S
from protocol.signing import open_sealed
from protocol.wiretypes import PeerId

__all__ = ["check_not_from_future", "unseal"]

T = TypeVar("T")


def unseal(data: bytes, domain: str, wanted: type[T], *, max_bytes: int) -> tuple[PeerId, T]:
    """``(who signed, payload)``, the payload decoded only after its signature held.

    Raises:
        RecordRefused: TOO_LARGE, FORGED or MALFORMED.
    """
    try:
        signer, payload = open_sealed(data, domain, max_bytes=max_bytes)
        return signer, decode_as(payload, wanted, max_bytes=max_bytes)
    except FrameTooLarge as exc:
        raise RecordRefused(RecordRefusal.TOO_LARGE, exc.message) from exc
    except BadSignature as exc:
        raise RecordRefused(RecordRefusal.FORGED, exc.message) from exc
    except MalformedMessage as exc:
        raise RecordRefused(RecordRefusal.MALFORMED, exc.message) from exc


def check_not_from_future(issued_at: float, now_s: float) -> None:
    """Lets pass what was issued up to the tolerated clock skew after ``now_s`` (Unix seconds).

    Raises:
        RecordRefused: FROM_FUTURE.
    """
    ahead_s = issued_at - now_s
    if ahead_s > MAX_CLOCK_SKEW_S:
        raise RecordRefused(RecordRefusal.FROM_FUTURE, f"issued {ahead_s:.3g} s from now")
