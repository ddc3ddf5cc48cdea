"""Whether the peers to start from can be reached; any one of them is enough."""

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from multiaddr import Multiaddr

from meshnode.doctor.finding import Finding, Outcome
from meshnode.doctor.subject import Subject

__all__ = ["check_peers"]

CONNECT_S = 1.0
"""A peer that can be used answers a connection attempt sooner."""

FAMILIES = {
    "ip4": socket.AF_INET,
    "dns4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}


def check_peers(subject: Subject) -> Sequence[Finding]:
    """What the daemon says of its bootstrap addresses; without one, whether TCP reaches those in the settings."""
    if subject.status is not None:
        errors = {str(entry.get("address")): entry.get("error") for entry in subject.status.get("bootstrap") or []}
    elif subject.holder is None and subject.config is not None:
        errors = _try_all(subject.config.net.join)
    else:
        return []
    if not errors:
        hint = "Starting alone is normal. To start from a peer: `meshnode run --join ADDR`, or join in [net]."
        return [Finding("peers", "note", "no peer to start from is set", hint)]
    return _judge(errors)


def _judge(errors: Mapping[str, str | None]) -> Sequence[Finding]:
    failing = {address: error for address, error in errors.items() if error is not None}
    if not failing:
        return [Finding("peers", "ok", f"no trouble with peers to start from: {len(errors)}")]
    outcome: Outcome = "note"
    hint = "Not needed as long as another one answers."
    if len(failing) == len(errors):
        outcome = "problem"
        hint = (
            "See that a node runs there, listens where it can be reached, and has this address (`meshnode id` there)."
        )
    return [Finding("peers", outcome, f"{address}: {error}", hint) for address, error in failing.items()]


def _try_all(addresses: Sequence[str]) -> dict[str, str | None]:
    """Each address with why it cannot be reached, None if it can."""
    if not addresses:
        return {}
    with ThreadPoolExecutor(max_workers=len(addresses)) as threads:
        return dict(zip(addresses, threads.map(_connection_error, addresses), strict=True))


def _connection_error(address: str) -> str | None:
    parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
    match parts:
        case [(family, str(host)), ("tcp", str(port)), *_] if family in FAMILIES:
            return _tcp_error(FAMILIES[family], host, int(port))
        case _:
            return "it is no TCP address, so only a running node can try it"


def _tcp_error(family: socket.AddressFamily, host: str, port: int) -> str | None:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as exc:
        return f"its name cannot be resolved: {exc.strerror}"
    error = None
    for kind, _, _, _, where in found:
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_S)
            try:
                probe.connect(where)
            except TimeoutError:
                error = f"no answer within {CONNECT_S:.3g} s"
            except OSError as exc:
                error = str(exc.strerror or exc)
            else:
                return None
    return error
