"""Who the API answers: the whole matrix of Host, Origin, key and call (SECURITY, row 25)."""

import itertools
import socket
from collections.abc import Iterator

import httpx
import pytest
from api_fake_node import HTTP, KEY, PEER_ID, FakeNode, Served, served

from meshnode.api.guard import allowed_hosts


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with served(FakeNode()) as running:
        yield running


CALLS = [
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/id"),
    ("GET", "/api/v1/peers"),
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/nothing-here"),
    ("GET", "/"),
    ("HEAD", "/api/v1/status"),
    ("OPTIONS", "/api/v1/status"),
    ("POST", "/api/v1/shutdown"),
    ("POST", "/api/v1/train/now"),
    ("PUT", "/api/v1/status"),
]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1:{port}.evil.example",
    "127.0.0.1.evil.example:{port}",
    "localhost.:{port}",
    "0.0.0.0:{port}",
    "",
]
FOREIGN_ORIGINS = [
    "null",
    "http://evil.example",
    "http://evil.example:{port}",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:1",
    "http://127.0.0.1:{port}.evil.example",
    "http://localhost:{port}",
    "",
]
WRONG_KEYS = [f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer", f"Bearer  {KEY}"]


def _ask(api: Served, call: tuple[str, str], **headers: str) -> httpx.Response:
    filled = {name: value.format(port=api.port) for name, value in headers.items()}
    method, path = call
    return HTTP.request(method, api.url + path, headers=filled)


def _assert_refused(api: Served, response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    assert PEER_ID not in response.text
    assert api.node.shutdowns == 0
    if response.request.method != "HEAD":
        assert set(response.json()["error"]) == {"code", "message", "hint"}
        assert response.json()["error"]["code"] == "refused"
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_foreign_host_is_refused_whatever_else_is_right(api: Served, call: tuple[str, str]) -> None:
    for host, origin in itertools.product(FOREIGN_HOSTS, (None, "http://127.0.0.1:{port}")):
        headers = {"host": host, "authorization": f"Bearer {KEY}"} | ({"origin": origin} if origin else {})
        _assert_refused(api, _ask(api, call, **headers), 403)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_foreign_origin_is_refused_whatever_else_is_right(api: Served, call: tuple[str, str]) -> None:
    for origin in FOREIGN_ORIGINS:
        headers = {"host": "127.0.0.1:{port}", "origin": origin, "authorization": f"Bearer {KEY}"}
        _assert_refused(api, _ask(api, call, **headers), 403)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_call_needs_the_key_reading_included(api: Served, call: tuple[str, str]) -> None:
    response = _ask(api, call)
    _assert_refused(api, response, 401)
    assert response.headers["www-authenticate"] == "Bearer"
    for wrong in WRONG_KEYS:
        _assert_refused(api, _ask(api, call, authorization=wrong), 403)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_the_open_routes_need_no_key_but_a_host_and_origin_of_our_own(api: Served, path: str) -> None:
    assert _ask(api, ("GET", path)).status_code == 200
    _assert_refused(api, _ask(api, ("GET", path), host="evil.example"), 403)
    _assert_refused(api, _ask(api, ("GET", path), origin="http://evil.example"), 403)


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LocalHost:{port}"])
@pytest.mark.parametrize("same_origin", [False, True])
def test_our_own_names_are_answered(api: Served, host: str, same_origin: bool) -> None:
    headers = {"host": host, "authorization": f"Bearer {KEY}"}
    if same_origin:
        headers["origin"] = f"http://{host}"
    assert _ask(api, ("GET", "/api/v1/status"), **headers).json()["peer_id"] == PEER_ID


@pytest.mark.parametrize(
    "head",
    [
        "Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: 127.0.0.1:{port}\r\n",
        "",
        "Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nOrigin: http://evil.example\r\n",
        "Host: 127.0.0.1:{port}\r\nAuthorization: Bearer wrong\r\n",
    ],
)
def test_a_header_given_twice_or_not_at_all_opens_nothing(api: Served, head: str) -> None:
    request = f"GET /api/v1/status HTTP/1.1\r\n{head.format(port=api.port)}Authorization: Bearer {KEY}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert answer.split(b" ", 2)[1] in (b"400", b"403")
    assert PEER_ID.encode() not in answer


def test_a_path_that_only_resembles_an_open_one_is_not_open(api: Served) -> None:
    for path in ("/healthz/", "//healthz", "/healthz/../api/v1/status", "/HEALTHZ"):
        _assert_refused(api, _ask(api, ("GET", path)), 401)


def test_a_server_on_another_address_answers_to_that_address_too() -> None:
    loopback = {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert allowed_hosts("127.0.0.1", 80) == loopback
    assert allowed_hosts("0.0.0.0", 80) == allowed_hosts("::", 80) == loopback
    assert allowed_hosts("192.0.2.7", 80) == loopback | {"192.0.2.7:80"}
    assert allowed_hosts("2001:DB8:0::1", 80) == loopback | {"[2001:db8::1]:80"}
