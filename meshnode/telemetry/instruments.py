"""Measurements that add up over time, taken where things happen and read by ``/metrics``.

What has a value at any moment (peers, experts, bytes so far) is not here: it is read from the node when it is asked
for, by `meshnode.gauges`.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from protocol.errors import ModuleMeshError

__all__ = ["Instruments"]

_CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""From an answer of the same process to the deadline of a call."""

_ROUND_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From two replicas side by side to a round that was given up."""


class Instruments:
    """The accumulating metrics of one node, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.dht_requests = Histogram(
            "modulemesh_dht_request_duration_seconds",
            "Time of a look-up or store in the DHT, by operation (get, store).",
            ["operation"],
            buckets=_CALL_BUCKETS_S,
            registry=self.registry,
        )
        self.inference_requests = Counter(
            "modulemesh_inference_requests_total",
            "Inference requests by role (client: asked here; server: an expert here asked by a peer) and result"
            " (ok, the error's code, cancelled, or failure for one without a code).",
            ["role", "result"],
            registry=self.registry,
        )
        self.inference_duration = Histogram(
            "modulemesh_inference_duration_seconds",
            "Time of an inference request that was answered, by role (client, server).",
            ["role"],
            buckets=_CALL_BUCKETS_S,
            registry=self.registry,
        )
        self.averaging_duration = Histogram(
            "modulemesh_averaging_duration_seconds",
            "Time of an attempt of an averaging round, committed or not.",
            buckets=_ROUND_BUCKETS_S,
            registry=self.registry,
        )
        self.averaging_group_peers = Gauge(
            "modulemesh_averaging_group_peers",
            "Members of the last averaging round that committed, this node included; 0 before the first.",
            registry=self.registry,
        )
        self.train_steps = Counter(
            "modulemesh_train_steps_total",
            "Distillation steps taken since the start.",
            registry=self.registry,
        )
        self.train_samples = Counter(
            "modulemesh_train_samples_total",
            "Images of new tasks seen in distillation steps since the start, each time one is seen.",
            registry=self.registry,
        )

        # To find a counter by its labels takes longer than to count.
        self._requests = cache(self.inference_requests.labels)
        self._durations = cache(self.inference_duration.labels)

    @property
    def collectors(self) -> Sequence[MetricWrapperBase]:
        """The metrics themselves."""
        return [metric for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]

    @contextmanager
    def inference(self, role: Literal["client", "server"]) -> Iterator[None]:
        """Count the request that the block answers, under its result, and take its time if it is answered."""
        began_s = time.perf_counter()
        result = "failure"
        try:
            yield
            result = "ok"
        except (ModuleMeshError, asyncio.CancelledError) as exc:
            result = exc.code if isinstance(exc, ModuleMeshError) else "cancelled"
            raise
        finally:
            self._requests(role, str(result)).inc()
            if result == "ok":
                self._durations(role).observe(time.perf_counter() - began_s)
