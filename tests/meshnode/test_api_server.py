"""The server's life: its socket, its silence, and an end that nothing can put off."""

import asyncio
import logging
import signal
import socket
import time

import httpx
import pytest
import uvicorn
from api_fake_node import KEY, FakeNode

from meshnode.api import ApiServer
from meshnode.errors import ConfigInvalid, PortInUse


async def test_the_url_is_known_and_answers_from_the_first_moment() -> None:
    async with ApiServer(FakeNode(), "127.0.0.1:0", KEY) as api, httpx.AsyncClient(trust_env=False) as client:
        assert api.url.startswith("http://127.0.0.1:")
        assert (await client.get(f"{api.url}/healthz")).status_code == 200


async def test_ipv6_loopback_is_served_under_its_bracketed_name() -> None:
    async with ApiServer(FakeNode(), "[::1]:0", KEY) as api, httpx.AsyncClient(trust_env=False) as client:
        assert api.url.startswith("http://[::1]:")
        assert (await client.get(f"{api.url}/healthz")).status_code == 200


async def test_a_wildcard_is_reached_by_loopback() -> None:
    async with ApiServer(FakeNode(), "0.0.0.0:0", KEY) as api, httpx.AsyncClient(trust_env=False) as client:
        assert api.url.startswith("http://127.0.0.1:")
        assert (await client.get(f"{api.url}/healthz")).status_code == 200


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            await ApiServer(FakeNode(), f"127.0.0.1:{port}", KEY).__aenter__()
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)


async def test_an_address_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigInvalid, match=r"192\.0\.2\.1"):
        await ApiServer(FakeNode(), "192.0.2.1:0", KEY).__aenter__()


async def test_the_port_is_free_again_after_the_end() -> None:
    async with ApiServer(FakeNode(), "127.0.0.1:0", KEY) as api:
        port = int(api.url.rsplit(":", 1)[1])
    async with ApiServer(FakeNode(), f"127.0.0.1:{port}", KEY) as again:
        assert again.url == api.url


async def test_signals_stay_the_nodes_own() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with ApiServer(FakeNode(), "127.0.0.1:0", KEY):
        await asyncio.sleep(0.2)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_serving_logs_nothing_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with (
            ApiServer(FakeNode(), "127.0.0.1:0", KEY) as api,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            await client.get(f"{api.url}/healthz")
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_the_trace_of_a_bug_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode(failure=ZeroDivisionError("a bug"))
    async with ApiServer(node, "127.0.0.1:0", KEY) as api, httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{api.url}/api/v1/status", headers={"authorization": f"Bearer {KEY}"})
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


async def test_a_request_under_way_is_answered_before_the_end() -> None:
    node = FakeNode(answer_after_s=0.5)
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {KEY}"}) as client:
        async with ApiServer(node, "127.0.0.1:0", KEY) as api:
            asked = asyncio.create_task(client.post(f"{api.url}/api/v1/infer", json={"images": [[[1]]]}))
            await asyncio.sleep(0.2)
        assert (await asked).status_code == 200


async def test_a_client_that_never_finishes_its_request_cannot_put_off_the_end() -> None:
    async with ApiServer(FakeNode(), "127.0.0.1:0", KEY) as api:
        port = int(api.url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /api/v1/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
        await writer.drain()
        await asyncio.sleep(0.2)
        leaving_at = time.monotonic()
    assert time.monotonic() - leaving_at < 6
    writer.close()


async def test_a_cancelled_block_closes_the_server_and_stays_cancelled() -> None:
    async def serve() -> None:
        async with ApiServer(FakeNode(), "127.0.0.1:0", KEY):
            await asyncio.sleep(60)

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0.2)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_failure_of_the_server_ends_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_server: uvicorn.Server) -> None:
        raise OSError("the listening socket is gone")

    monkeypatch.setattr(uvicorn.Server, "main_loop", fail)
    with pytest.raises(ExceptionGroup) as caught:
        async with ApiServer(FakeNode(), "127.0.0.1:0", KEY):
            await asyncio.sleep(60)
    assert caught.group_contains(OSError)


async def test_a_failing_block_still_closes_the_server() -> None:
    with pytest.raises(LookupError, match="of the block"):
        async with ApiServer(FakeNode(), "127.0.0.1:0", KEY) as api:
            raise LookupError("of the block")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(api.url.rsplit(":", 1)[1]))
