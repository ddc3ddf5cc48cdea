"""An address says where to dial and whom to expect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.addresses import parse_address
from protocol.errors import MalformedAddress
from protocol.identifiers import peer_id_of

PEER = peer_id_of(b"key")


@pytest.mark.parametrize(
    "place",
    ["/ip4/203.0.113.7/tcp/31337", "/ip6/::1/tcp/1", "/dns4/example.org/tcp/443", "/ip4/1.2.3.4/udp/1/quic"],
)
def test_an_address_gives_back_its_text_and_its_peer(place):
    address = parse_address(f"{place}/p2p/{PEER}")
    assert (str(address), address.peer_id) == (f"{place}/p2p/{PEER}", PEER)
    assert parse_address(address.multiaddr) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must end in /p2p/"),
        ("/ip4/1.2.3.4/tcp/1", "must end in /p2p/"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit", "must end in /p2p/"),
        (f"/p2p/{PEER}", "not where"),
        (f"/ip4/1.2.3.999/tcp/1/p2p/{PEER}", "not IPv4"),
        (f"/ip4/1.2.3.4/tcp/70000/p2p/{PEER}", "65536"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{PEER[:-1]}", ""),
        ("/ip4/1.2.3.4/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", "46 characters"),
        ("/dns4/" + "a" * 600, "longer than"),
        ("127.0.0.1:80", ""),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text, reason):
    with pytest.raises(MalformedAddress) as refused:
        parse_address(text)
    assert reason in refused.value.reason
    assert refused.value.text == text


@given(st.one_of(st.text(), st.from_regex(r"(/(ip4|tcp|dns|p2p|unix|onion3|certhash)/[ -~]{0,12}){0,4}")))
def test_garbage_is_refused_and_nothing_else_happens(text):
    with pytest.raises(MalformedAddress):
        parse_address(text)
