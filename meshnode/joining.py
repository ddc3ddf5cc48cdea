"""How a client, which is no node, comes into the network: with an identity of its own that it forgets."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from protocol.errors import PeerUnreachable
from protocol.identifiers import PeerId

__all__ = ["connect_any", "open_client"]


async def open_client(resources: AsyncExitStack) -> tuple[Home, HivemindTransport]:
    """A folder and a transport for one client, both gone when `resources` are closed.

    Raises:
        TransportFailed: As `HivemindTransport.open`.
    """
    folder = Path(tempfile.mkdtemp(prefix="meshclient-"))
    resources.callback(shutil.rmtree, folder, ignore_errors=True)
    home = Home(folder)
    home.create()
    load_or_create_identity(home)
    transport = await HivemindTransport.open(
        HivemindConfig(identity_path=home.identity_key, client_only=True, moe=True)
    )
    resources.push_async_callback(transport.aclose)
    return home, transport


async def connect_any(transport: HivemindTransport, addresses: Sequence[str]) -> list[PeerId]:
    """Connect to as many of `addresses` as answer, and say whom.

    Raises:
        MalformedAddress: An address cannot be read.
        PeerUnreachable: None answers.
    """
    connected: list[PeerId] = []
    failure: PeerUnreachable | None = None
    for address in addresses:
        try:
            connected.append(await transport.connect(address))
        except PeerUnreachable as exc:
            failure = exc
    if failure is not None and not connected:
        raise failure
    return connected
