"""A process of the benchmark of serving: hivemind.moe.Server or RemoteExpert, unmodified, with the same module.

Usage: bench_serving_moe.py server | client; started by `bench_children`.

The server forks its DHT, its pools and its handlers, and the client blocks a thread, so neither has an event loop that
is ours. Concurrent callers are coroutines of hivemind's own loop, as in its RemoteMixtureOfExperts: a thread each would
be slower.
"""

import gc
import sys
import time
from typing import Any

import numpy as np
import torch
from bench_orders import obey
from bench_serving_load import closed
from bench_serving_modules import FEATURES, P2P_SETTINGS, features_of, local_answer, module_of
from hivemind.compression import serialize_torch_tensor
from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server
from hivemind.moe.client.expert import RemoteExpert, expert_forward
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.p2p import P2P, PeerID
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import nn

NAME = "expert.0"

HANDLERS = 1
"""Connection handlers. hivemind recommends several an expert; of 1, 2 and 4 one was the fastest on two cores, for one
caller and for 64: each is a process more."""

MAX_BATCH = 4096


class _Answering(nn.Module):
    """Logits to probabilities, as all others answer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.module(features_BD), dim=-1)


class MoeServer:
    """The commands of the server's child."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def open(self, uid: str, handlers: int = HANDLERS) -> str:
        """Serve the module of this uid; returns the address."""
        gc.freeze()  # as in all others, and for all that is forked
        dht = DHT(start=True, **P2P_SETTINGS)
        schema = (BatchTensorDescriptor(FEATURES),)
        backend = ModuleBackend(NAME, _Answering(module_of(uid)), args_schema=schema, max_batch_size=MAX_BATCH)
        self._server = Server(dht, {NAME: backend}, num_connection_handlers=handlers, start=True)
        return str(dht.get_visible_maddrs()[0])

    def close(self) -> None:
        """Stop in good order."""
        if self._server is not None:
            self._server.shutdown()


class MoeClient:
    """The commands of the client's child."""

    def __init__(self) -> None:
        self._expert: RemoteExpert | None = None

    def open(self, address: str, uid: str) -> None:
        """Connect, and see that the answers are those of the module."""
        gc.freeze()
        self._expert = RemoteExpertWorker.run_coroutine(_remote_expert(address))
        assert self._expert is not None
        features_BD = features_of(3)
        np.testing.assert_allclose(
            self._expert(torch.from_numpy(features_BD)).detach().numpy(), local_answer(uid, features_BD), atol=1e-5
        )

    def closed(self, rows: int, calls: int) -> dict[str, Any]:
        """One caller, so many times; as `bench_serving_load.closed`."""
        assert self._expert is not None
        asked_BD, taken_ms = torch.from_numpy(features_of(rows)), []
        began_s = time.perf_counter()
        for _ in range(calls):
            sent_s = time.perf_counter()
            self._expert(asked_BD)
            taken_ms.append(round(1e3 * (time.perf_counter() - sent_s), 4))
        return {"ms": taken_ms, "elapsed_s": time.perf_counter() - began_s}

    def throughput(self, rows: int, callers: int, span_s: float) -> dict[str, Any]:
        """Concurrent callers; as `bench_serving_load.closed`."""
        expert, asked_BD = self._expert, torch.from_numpy(features_of(rows))
        assert expert is not None

        async def call() -> list[torch.Tensor]:
            answer: list[torch.Tensor] = await expert_forward(
                expert.uid, [asked_BD], [serialize_torch_tensor(asked_BD)], expert.stub
            )
            return answer

        outcome: dict[str, Any] = RemoteExpertWorker.run_coroutine(closed(call, callers=callers, span_s=span_s))
        return outcome

    def close(self) -> None:
        """Nothing that the end of the process would not do."""


async def _remote_expert(address: str) -> RemoteExpert:
    where, _, peer = address.rpartition("/p2p/")
    p2p, peer_id = await P2P.create(**P2P_SETTINGS), PeerID.from_base58(peer)
    await p2p._client.connect(peer_id, [Multiaddr(where)])
    return RemoteExpert(ExpertInfo(NAME, peer_id), p2p)


if __name__ == "__main__":
    obey({"server": MoeServer, "client": MoeClient}[sys.argv[1]]())
