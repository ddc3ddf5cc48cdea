"""What a scraper reads of a node that has no mesh yet, and what is documented of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from mesh_in_memory import memory_network
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from meshnode.compute import Compute
from meshnode.gauges import MqttState, NodeGauges, documented_metrics
from meshnode.runtime import MeshRuntime
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Transport
from protocol.errors import Busy
from protocol.identifiers import PeerId


@dataclass
class Waiting:
    """A node before it belongs to a mesh."""

    state: str = "waiting"
    transport: Transport = field(default_factory=lambda: memory_network().join(PeerId("QmMe")))
    compute: Compute = field(default_factory=Compute)
    runtime: MeshRuntime | None = None
    mqtt: MqttState | None = None


def samples(node: Waiting, instruments: Instruments | None = None) -> dict[str, float]:
    """Every sample by its name and labels, as the text format writes them."""
    instruments = instruments or Instruments()
    instruments.registry.register(NodeGauges(node))
    return {
        f"{sample.name.removeprefix('modulemesh_')}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(generate_latest(instruments.registry).decode())
        for sample in family.samples
    }


def test_a_node_without_a_mesh_can_be_scraped() -> None:
    read = samples(Waiting())
    assert read["node_state['waiting']"] == 1
    assert read["node_state['ready']"] == 0
    assert read["peers[]"] == 0
    assert read["experts['local']"] == read["experts['mesh']"] == 0
    assert not any(name.startswith(("expert_replicas_min", "parameter_age", "distill_loss")) for name in read), (
        "what has no value is absent, not zero"
    )


def test_bytes_are_told_by_direction_and_kind() -> None:
    node = Waiting()
    node.transport.traffic.sent["averaging"] += 1000
    node.transport.traffic.received["blobs"] += 20
    read = samples(node)
    assert read["network_bytes_total['averaging', 'sent']"] == 1000
    assert read["network_bytes_total['blobs', 'received']"] == 20


def test_the_broker_that_is_away_shows() -> None:
    read = samples(Waiting(mqtt=SimpleNamespace(connected=False, dropped=7)))
    assert (read["mqtt_connected[]"], read["mqtt_messages_dropped_total[]"]) == (0, 7)
    assert samples(Waiting(mqtt=SimpleNamespace(connected=True, dropped=0)))["mqtt_connected[]"] == 1


def test_a_request_is_counted_under_its_result_and_timed_if_answered() -> None:
    instruments = Instruments()
    with instruments.inference("server"):
        pass
    with pytest.raises(Busy), instruments.inference("server"):
        raise Busy(retry_after_s=1.0)
    with pytest.raises(ZeroDivisionError), instruments.inference("client"):
        raise ZeroDivisionError
    read = samples(Waiting(), instruments)
    assert read["inference_requests_total['ok', 'server']"] == 1
    assert read["inference_requests_total['busy', 'server']"] == 1
    assert read["inference_requests_total['client', 'failure']"] == 1
    assert read["inference_duration_seconds_count['server']"] == 1
    assert "inference_duration_seconds_count['client']" not in read


def test_two_nodes_of_one_process_count_for_themselves() -> None:
    first, second = Instruments(), Instruments()
    first.train_steps.inc(5)
    assert samples(Waiting(), first)["train_steps_total[]"] == 5
    assert samples(Waiting(), second)["train_steps_total[]"] == 0


def test_every_metric_has_the_prefix_a_base_unit_and_a_meaning() -> None:
    metrics = documented_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert metric.name.startswith("modulemesh_")
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert not metric.name.endswith(("_ms", "_milliseconds", "_mb", "_percent")), metric.name
        assert ":" not in metric.name
        assert not {"peer", "peer_id"} & set(metric.labels), metric.name
        assert metric.help.endswith("."), metric.name
