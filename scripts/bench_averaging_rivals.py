"""A process of the benchmark of averaging: hivemind.DecentralizedAverager, one for each expert of each peer.

Started by `bench_children`. hivemind forks a process for every averager and one for every peer's DHT, each of which
starts a p2pd; all of them end with this one.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from bench_orders import obey
from bench_serving_modules import P2P_SETTINGS
from hivemind.averaging import DecentralizedAverager
from hivemind.dht import DHT

STEP_S = 60.0
"""How long a step may look for its group before it counts as failed."""

TOLERANCE = 1e-5

MATCHMAKING_S, REQUEST_S = 5.0, 3.0
"""hivemind's own defaults. A full group does not wait, so they cost nothing here: of 0.3, 0.5, 1, 2 and 5 s they made
both of its figures fastest on two cores. With less, groups of 16 experts give up before they are full."""


class Averagers:
    """The commands of this child."""

    def __init__(self) -> None:
        self._by_peer: list[list[DecentralizedAverager]] = []
        self._dhts: list[DHT] = []

    def open(self, peers: int, experts: int, parameters: int) -> None:
        """Start averagers that find one another, each of one tensor.

        Args:
            peers: Members of every group.
            experts: Averagers of each peer.
            parameters: Of each expert.
        """
        self._dhts = [DHT(start=True, **P2P_SETTINGS)]
        address = [str(known) for known in self._dhts[0].get_visible_maddrs()]
        self._dhts += [DHT(start=True, initial_peers=address, **P2P_SETTINGS) for _ in range(peers - 1)]
        self._by_peer = [
            [
                DecentralizedAverager(
                    [torch.zeros(parameters)],
                    dht,
                    start=False,
                    prefix=f"expert{number}",
                    target_group_size=peers,
                    min_group_size=peers,
                    min_matchmaking_time=MATCHMAKING_S,
                    request_timeout=REQUEST_S,
                    allow_state_sharing=False,
                )
                for number in range(experts)
            ]
            for dht in self._dhts
        ]
        for averager in self._all():
            averager.run_in_background(await_ready=False)
        for averager in self._all():
            averager.wait_until_ready(STEP_S)

    def step(self, seed: int) -> dict[str, Any]:
        """Have every group average once, all at the same time, from other values each time.

        Returns: ``elapsed_s``, from the first call to the last result, and ``wrong``: averagers that did not end with
            the mean of their group.
        """
        generator = torch.Generator().manual_seed(seed)
        sums = [torch.zeros(0)] * len(self._by_peer[0])
        for averagers in self._by_peer:
            for number, averager in enumerate(averagers):
                with averager.get_tensors() as (tensor,):
                    tensor.normal_(generator=generator)
                    sums[number] = tensor + sums[number] if len(sums[number]) else tensor.clone()
        with ThreadPoolExecutor(len(self._by_peer)) as peers:  # as each would in its own process
            began_s = time.perf_counter()
            list(peers.map(_step_all, self._by_peer))
            elapsed_s = time.perf_counter() - began_s
        wrong = 0
        for averagers in self._by_peer:
            for number, averager in enumerate(averagers):
                with averager.get_tensors() as (tensor,):
                    mean = sums[number] / len(self._by_peer)
                    wrong += not torch.allclose(tensor, mean, rtol=0, atol=TOLERANCE)
        return {"elapsed_s": elapsed_s, "wrong": wrong}

    def close(self) -> None:
        """Nothing: what was forked is killed, which is quicker than its own end."""

    def _all(self) -> list[DecentralizedAverager]:
        return [averager for averagers in self._by_peer for averager in averagers]


def _step_all(averagers: list[DecentralizedAverager]) -> None:
    steps = [averager.step(wait=False, timeout=STEP_S) for averager in averagers]
    for step in steps:
        step.result()


if __name__ == "__main__":
    obey(Averagers())
