"""Addresses of peers: libp2p multiaddresses that end in the peer's id."""

from dataclasses import dataclass

import multiaddr
import multiaddr.exceptions

from protocol import limits
from protocol.errors import MalformedAddress, MalformedIdentifier
from protocol.identifiers import parse_peer_id
from protocol.wiretypes import PeerId

__all__ = ["PeerAddress", "parse_address"]


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where to dial and whom to expect there.

    Made by `parse_address`, so that ``peer_id`` is what ``multiaddr`` ends in.
    """

    multiaddr: str
    """The whole address in canonical text, for instance ``/ip4/203.0.113.7/tcp/31337/p2p/Qm...``."""
    peer_id: PeerId

    def __str__(self) -> str:
        return self.multiaddr


def parse_address(text: str) -> PeerAddress:
    """The address that ``text`` spells; names in it are not resolved.

    Raises:
        MalformedAddress: Not a multiaddress, without a transport, or not ending in ``/p2p/<peer id>``.
    """
    if len(text) > limits.MAX_ADDRESS_CHARS:
        raise MalformedAddress(text, f"longer than {limits.MAX_ADDRESS_CHARS} characters")
    try:
        parsed = multiaddr.Multiaddr(text)
        parts = [(protocol.name, value) for protocol, value in parsed.items()]
    except (ValueError, LookupError, multiaddr.exceptions.Error) as exc:
        raise MalformedAddress(text, _reason_of(exc)) from exc
    if not parts or parts[-1][0] != "p2p" or parts[-1][1] is None:
        raise MalformedAddress(text, "it must end in /p2p/ and the peer's id")
    if len(parts) == 1:
        raise MalformedAddress(text, "it says whom to dial, but not where")
    try:
        peer_id = parse_peer_id(parts[-1][1])
    except MalformedIdentifier as exc:
        raise MalformedAddress(text, exc.message) from exc
    return PeerAddress(str(parsed), peer_id)


def _reason_of(exc: Exception) -> str:
    """What the parser found, without its repetition of the whole address."""
    reason = str(exc.args[0]) if exc.args else type(exc).__name__
    return reason.rsplit(": ", 1)[-1]
