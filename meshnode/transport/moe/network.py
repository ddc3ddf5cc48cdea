"""hivemind's own expert protocol on a started node: answering, declaring cells, finding and asking others' experts."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P

from meshnode.logs import get_logger
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Traffic
from meshnode.transport.moe.client import ForeignExpert, ForeignServers
from meshnode.transport.moe.interface import CellAnswers
from meshnode.transport.moe.server import ConnectionHandler
from protocol.declarations import declarations_of
from protocol.errors import MalformedIdentifier, ModuleMeshError
from protocol.grid import parse_any_peer_id, parse_cell

__all__ = ["HivemindMoe"]

log = get_logger(__name__)


class HivemindMoe:
    """See `meshnode.transport.moe.interface.MoeNetwork`; beside it, the client of others' experts.

    Args:
        p2p: The started connection to the network.
        dht: Its DHT node; it takes declarations only if its validator does.
        traffic: Counts the tensors' bytes.
        instruments: Take the time of look-ups and stores.
    """

    def __init__(self, p2p: P2P, dht: DHTNode, traffic: Traffic, instruments: Instruments) -> None:
        self._p2p = p2p
        self._dht = dht
        self._traffic = traffic
        self._instruments = instruments
        self._servers = ForeignServers(p2p, traffic)

    @asynccontextmanager
    async def answering(self, answers: CellAnswers) -> AsyncIterator[None]:
        handler = ConnectionHandler(answers, self._traffic)
        await handler.start(self._p2p)
        try:
            yield
        finally:
            await handler.stop(self._p2p)

    async def declare(self, cells: Sequence[str], *, expires_at: float) -> bool:
        own = self._p2p.peer_id.to_base58()
        entries = [entry for cell in cells for entry in declarations_of(cell, own)]
        if not entries:
            return True
        keys, subkeys, values = zip(*entries, strict=True)
        with self._instruments.dht_requests.labels("store").time():
            stored = await self._dht.store_many(list(keys), list(values), expires_at, subkeys=list(subkeys))
        return all(stored.values())

    async def holders(self, cells: Sequence[str]) -> Mapping[str, str]:
        for cell in cells:
            parse_cell(cell)
        if not cells:
            return {}
        with self._instruments.dht_requests.labels("get").time():
            found = await self._dht.get_many(list(cells), sufficient_expiration_time=float("inf"))
        return {cell: entry.value for cell, entry in found.items() if entry is not None and _is_peer_id(entry.value)}

    async def experts(self, cells: Sequence[str], *, timeout_s: float) -> Mapping[str, ForeignExpert]:
        """The experts in those cells that some peer has declared and describes.

        A declaration outlives its server, and anybody could have made it; that its peer does not answer for the cell is
        logged, and the cell left out.

        Args:
            cells: hivemind's uids, such as ``ffn.3.5``.
            timeout_s: How long a server may take to describe an expert.

        Raises:
            MalformedIdentifier: One is no cell.
        """
        holders = await self.holders(cells)
        found = await asyncio.gather(
            *(self._describe(peer_id, cell, timeout_s=timeout_s) for cell, peer_id in holders.items())
        )
        return {expert.cell: expert for expert in found if expert is not None}

    async def _describe(self, peer_id: str, cell: str, *, timeout_s: float) -> ForeignExpert | None:
        try:
            return await self._servers.describe(peer_id, cell, timeout_s=timeout_s)
        except ModuleMeshError as failure:
            log.warning("a declared expert cannot be used", cell=cell, peer=peer_id, reason=str(failure))
            return None


def _is_peer_id(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_any_peer_id(value))
    except MalformedIdentifier:
        return False
