"""What has a value at any moment, read from the node when ``/metrics`` is asked for.

What adds up over time and is kept nowhere else is in `meshnode.telemetry.instruments`. No metric has a peer's id as a
label: the mesh decides how many there are.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshnode import __version__
from meshnode.compute import Compute
from meshnode.runtime import MeshRuntime
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Transport

__all__ = ["DocumentedMetric", "MqttState", "NodeGauges", "NodeParts", "documented_metrics"]

STATES = ("waiting", "ready", "draining")


class MqttState(Protocol):
    """How it stands with the broker."""

    @property
    def connected(self) -> bool: ...
    @property
    def dropped(self) -> int: ...


class NodeParts(Protocol):
    """The node as far as it is measured here."""

    @property
    def state(self) -> str: ...
    @property
    def transport(self) -> Transport: ...
    @property
    def compute(self) -> Compute: ...
    @property
    def runtime(self) -> MeshRuntime | None: ...
    @property
    def mqtt(self) -> MqttState | None: ...


class DocumentedMetric(NamedTuple):
    """A line of docs/metrics.md."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the metric's value."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A metric, and how it is read."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[NodeParts], Iterable[Sample]]

    @property
    def type(self) -> str:
        return "counter" if self.name.endswith("_total") else "gauge"

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        family = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        return family(f"modulemesh_{self.name}", self.help, labels=self.labels)


class NodeGauges(Collector):
    """Reads one node; register it with the registry of the node's instruments."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node

    def describe(self) -> Iterator[Metric]:
        """The families without a value: what registering asks for must not read a node that is being put together."""
        return (metric.family() for metric in _METRICS)

    def collect(self) -> Iterator[Metric]:
        """Read everything now."""
        for metric in _METRICS:
            family = metric.family()
            for labels, value in metric.read(self._node):
                family.add_metric(labels, value)
            yield family


def documented_metrics() -> Sequence[DocumentedMetric]:
    """Every metric of a node, by name."""
    instruments = [
        DocumentedMetric(
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            tuple(collector._labelnames),  # the library tells them nowhere else
            family.documentation,
        )
        for collector in Instruments().collectors
        for family in collector.describe()
    ]
    read = [
        DocumentedMetric(f"modulemesh_{metric.name}", metric.type, metric.labels, metric.help) for metric in _METRICS
    ]
    return sorted([*instruments, *read])


def _build(_node: NodeParts) -> Iterable[Sample]:
    yield (__version__,), 1


def _state(node: NodeParts) -> Iterable[Sample]:
    return (((state,), float(node.state == state)) for state in STATES)


def _restarts(node: NodeParts) -> Iterable[Sample]:
    yield ("trainer",), node.runtime.trainer.status.restarts if node.runtime else 0


def _peers(node: NodeParts) -> Iterable[Sample]:
    others = {record.peer_id for record in node.runtime.directory.records()} if node.runtime else set()
    yield (), len(others - {node.transport.peer_id})


def _experts(node: NodeParts) -> Iterable[Sample]:
    hosted = node.runtime.host.experts.values() if node.runtime else ()
    yield ("local",), len(hosted)
    yield ("placed",), sum(expert.placed for expert in hosted)
    yield ("mesh",), len(node.runtime.directory.current()) if node.runtime else 0


def _replicas_min(node: NodeParts) -> Iterable[Sample]:
    listings = node.runtime.directory.current().values() if node.runtime else ()
    replicas = [len(listing.holders) for listing in listings]
    if replicas:  # without an expert there is no smallest number
        yield (), min(replicas)


def _specialization(node: NodeParts) -> Iterable[Sample]:
    measured = node.runtime.trainer.specialization if node.runtime else None
    if node.runtime and measured:
        hosted = node.runtime.host.experts
        for uid, entropy in zip(measured.uids, measured.entropies.tolist(), strict=True):
            if uid in hosted and not math.isnan(entropy):  # an expert that gets no gate mass has no entropy
                yield (uid[:12],), entropy


def _loss(node: NodeParts) -> Iterable[Sample]:
    status = node.runtime.trainer.status if node.runtime else None
    if status and status.stage == "distil" and status.loss is not None:
        yield (), status.loss


def _rounds(node: NodeParts) -> Iterable[Sample]:
    results = node.runtime.averager.results if node.runtime else Counter[str]()
    yield ("committed", ""), results["committed"]
    yield from ((("abandoned", reason), number) for reason, number in results.items() if reason != "committed")


def _parameter_age(node: NodeParts) -> Iterable[Sample]:
    ages = [time.time() - expert.committed_at for expert in node.runtime.host.experts.values()] if node.runtime else []
    if ages:
        yield (), max(ages)


def _network_bytes(node: NodeParts) -> Iterable[Sample]:
    traffic = node.transport.traffic
    for direction, counted in (("sent", traffic.sent), ("received", traffic.received)):
        for kind, number in counted.items():
            yield (direction, kind), number


def _queue(node: NodeParts) -> Iterable[Sample]:
    yield (), node.compute.waiting


def _mqtt_connected(node: NodeParts) -> Iterable[Sample]:
    yield (), float(node.mqtt is not None and node.mqtt.connected)


def _mqtt_dropped(node: NodeParts) -> Iterable[Sample]:
    yield (), node.mqtt.dropped if node.mqtt else 0


_METRICS = (
    _Read("build_info", "Always 1; the version is in the label.", ("version",), _build),
    _Read("node_state", "1 for the state the node is in, 0 for the others.", ("state",), _state),
    _Read(
        "process_restarts_total", "How often a process of the node had to be started again.", ("process",), _restarts
    ),
    _Read("peers", "Live peers of the mesh, this node left out.", (), _peers),
    _Read(
        "experts",
        "Experts hosted here (local), those of them by placement (placed), or the mesh's (mesh).",
        ("scope",),
        _experts,
    ),
    _Read(
        "expert_replicas_min",
        "Replicas of the mesh's rarest expert at peers that stay; absent without any expert.",
        (),
        _replicas_min,
    ),
    _Read(
        "expert_specialization_nats",
        "S(E_i) of each expert hosted here, on tasks learned here; 0 if it works for one class, absent without gates.",
        ("expert",),
        _specialization,
    ),
    _Read("distill_loss", "Mean loss of the last hundred distillation steps; absent between tasks.", (), _loss),
    _Read(
        "averaging_rounds_total",
        "Averaging attempts by result, with the reason if abandoned.",
        ("result", "reason"),
        _rounds,
    ),
    _Read(
        "parameter_age_seconds",
        "Time since the stalest expert here last changed; absent without any.",
        (),
        _parameter_age,
    ),
    _Read(
        "network_bytes_total",
        "Payload bytes to and from peers, without the DHT's own.",
        ("direction", "kind"),
        _network_bytes,
    ),
    _Read("inference_queue_requests", "Requests that wait for the processor or are being computed.", (), _queue),
    _Read("mqtt_connected", "1 while the MQTT broker is connected.", (), _mqtt_connected),
    _Read(
        "mqtt_messages_dropped_total", "MQTT messages dropped because the broker was away or slow.", (), _mqtt_dropped
    ),
)
