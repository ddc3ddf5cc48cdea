"""The banner: who the node is, what it computes on and why, and how each address to start from stands."""

from typing import Any

from meshnode.banner import banner


def status(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "name": "quiet-owl",
        "peer_id": "QmMe",
        "mesh": {"id": "cd" * 32, "name": "digits"},
        "device": {"used": "cpu", "reason": "torch finds no GPU"},
        "addresses": ["/ip4/127.0.0.1/tcp/4001/p2p/QmMe", "/ip4/192.0.2.1/tcp/4001/p2p/QmMe"],
        "bootstrap": [],
        "url": "http://127.0.0.1:8642",
    } | changes


def lines(**changes: Any) -> list[list[str]]:
    """The lines after the first, each as its name and the rest."""
    return [line.split(maxsplit=1) for line in banner(status(**changes)).splitlines()[1:]]


def test_it_names_the_node_its_device_with_the_reason_and_every_address() -> None:
    assert banner(status()).splitlines()[0] == "ModuleMesh 1.2.3, node quiet-owl"
    assert lines() == [
        ["peer", "id    QmMe"],
        ["mesh", f"digits  {'cd' * 32}"],
        ["device", "cpu (torch finds no GPU)"],
        ["listening", "/ip4/127.0.0.1/tcp/4001/p2p/QmMe"],
        ["listening", "/ip4/192.0.2.1/tcp/4001/p2p/QmMe"],
        ["api", "http://127.0.0.1:8642"],
    ]


def test_each_bootstrap_address_stands_with_its_state_and_its_error() -> None:
    bootstrap = [
        {"address": "/a", "state": "connected", "error": None},
        {"address": "/b", "state": "retrying", "error": "connection refused"},
        {"address": "/c", "state": "connecting", "error": None},
    ]
    shown = [rest for name, rest in lines(bootstrap=bootstrap) if name == "bootstrap"]
    assert shown == ["/a  connected", "/b  retrying (connection refused)", "/c  connecting"]


def test_without_a_mesh_it_says_where_to_look() -> None:
    assert ["mesh", "none yet; `meshnode why mesh` says what is missing"] in lines(mesh=None)


def test_what_a_peer_has_named_cannot_steer_the_terminal() -> None:
    shown = banner(status(mesh={"id": "cd" * 32, "name": "\x1b[2Jdigits\nReady in 0 s."}))
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == len(banner(status()).splitlines())
