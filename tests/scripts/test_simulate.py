"""The simulated mesh: what replays, what converges, what is conserved, and what faults do to it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from simulate_dht import answer_bytes, sample_lookups
from simulate_hivemind import run_dht
from simulate_load import limits_of
from simulate_mesh import Mesh, MeshConfig
from simulate_network import Call, Clock, Host, Network, NetworkConfig
from simulate_sizes import peer_named

from meshnode.averaging.settings import AveragerConfig
from protocol.mixing import rounds_to_mean

EXACT = 1e-12
"""Variance left by rounding to float32, relative to that of the beginning."""


def _config(num_nodes: int, method: str = "group", **settings: object) -> MeshConfig:
    return MeshConfig(num_nodes=num_nodes, averaging=AveragerConfig(method=method), **settings)


def _faulty(seed: int) -> Mesh:
    network = NetworkConfig(loss_ratio=0.003)
    return Mesh(_config(24, network=network, leaving_per_minute=0.2, training=0.1, seed=seed)).run(6)


def test_a_seed_replays_exactly() -> None:
    first, again, other = _faulty(7), _faulty(7), _faulty(8)
    assert first.samples == again.samples
    assert first.tally == again.tally
    assert first.clock.num_events == again.clock.num_events
    assert np.array_equal(first.vectors, again.vectors)
    assert first.samples != other.samples


@pytest.mark.parametrize(
    ("num_nodes", "method"), [(2, "random"), (8, "group"), (16, "group"), (36, "group"), (16, "hypercube")]
)
def test_without_faults_the_mean_is_reached_in_the_number_of_rounds_that_the_protocol_says(
    num_nodes: int, method: str
) -> None:
    rounds = rounds_to_mean(num_nodes, method=method, most=16)
    assert rounds is not None
    mesh = Mesh(_config(num_nodes, method)).run(rounds)
    assert mesh.samples[-1].disagreement < EXACT
    assert all(sample.disagreement > EXACT for sample in mesh.samples[:-1])
    assert mesh.tally.committed == rounds * num_nodes


@pytest.mark.parametrize("settings", [{}, {"uneven_weights": True}])
@pytest.mark.parametrize("compression", ["none", "int8"])
def test_the_weighted_sum_of_all_replicas_is_conserved(settings: dict[str, bool], compression: str) -> None:
    config = _config(20, **settings)
    config = replace(config, averaging=replace(config.averaging, compression=compression))
    assert Mesh(config).run(4).samples[-1].drift < 1e-5


@pytest.mark.parametrize(("num_nodes", "compression", "value_bytes"), [(2, "none", 4), (8, "none", 4), (8, "int8", 1)])
def test_a_group_sends_each_part_and_each_mean_once(num_nodes: int, compression: str, value_bytes: int) -> None:
    config = _config(num_nodes)
    mesh = Mesh(replace(config, averaging=replace(config.averaging, compression=compression))).run(1)
    sent = sum(node.sent["parts"] for node in mesh.nodes)
    # Headers, and int8's scales: 4 bytes for 256 values.
    assert sent == pytest.approx(2 * (num_nodes - 1) * value_bytes * config.num_parameters, rel=0.03)


def test_halves_that_cannot_reach_each_other_average_alone_and_become_one_again() -> None:
    mesh = Mesh(_config(12, training=0.1, partition_s=(5.0, 35.0))).run(3)
    assert mesh.tally.attempts["partner_silent"] == 3 * 12
    parted = mesh.samples[-1].disagreement
    assert parted > EXACT
    assert mesh.run(3).samples[-1].disagreement < EXACT


def test_nodes_that_differ_in_what_they_have_read_lose_attempts_and_not_agreement() -> None:
    mesh = Mesh(_config(32, leaving_per_minute=0.3, away_s=20.0, training=0.1)).run(10)
    assert mesh.tally.attempts["differing_views"] > 0
    assert 0.3 < mesh.tally.committed / mesh.tally.begun < 1
    assert mesh.samples[-1].disagreement < 0.5


def test_lost_messages_lose_rounds_of_large_groups_before_those_of_pairs() -> None:
    network = NetworkConfig(loss_ratio=0.01)
    group, pairs = (
        Mesh(_config(16, method, network=network, training=0.1)).run(6) for method in ("group", "hypercube")
    )
    assert group.tally.committed < pairs.tally.committed


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_no_attempt_ends_differently_at_its_members(seed: int) -> None:
    network = NetworkConfig(loss_ratio=0.02)
    mesh = Mesh(_config(8, network=network, leaving_per_minute=0.2, training=0.1, seed=seed)).run(20)
    assert mesh.tally.attempts["committed"] > 0
    assert mesh.tally.attempts.total() > 2 * mesh.tally.attempts["committed"]
    assert mesh.tally.divided == 0


def test_an_expert_that_takes_longer_to_send_than_a_round_may_take_is_never_averaged() -> None:
    assert Mesh(_config(4, num_parameters=2_000_000)).run(2).tally.committed == 0


def test_a_new_record_is_known_to_all_within_a_refresh_and_a_look_up() -> None:
    mesh = Mesh(_config(50))
    mesh.watch_news()
    mesh.run(1)
    assert len(mesh.known_s) == 50
    assert 2 < np.median(mesh.known_s) < max(mesh.known_s) < 6


def test_halves_become_one_again_even_if_nobody_learns_any_more() -> None:
    mesh = Mesh(_config(12, partition_s=(5.0, 35.0))).run(8)
    assert mesh.samples[-1].disagreement < EXACT


def test_rounds_end_when_nobody_learns_any_more_even_if_one_replica_is_alone_on_an_axis() -> None:
    config = _config(13)
    mesh = Mesh(replace(config, averaging=replace(config.averaging, group=4))).run(16)
    committed = mesh.tally.committed
    assert mesh.run(6).tally.committed == committed


def test_a_call_that_is_lost_or_for_a_dead_host_fails_when_its_caller_has_waited() -> None:
    clock = Clock()
    network = Network(clock, NetworkConfig(), seed=0)
    dead, caller = Host(alive=False), Host()
    answers: list[tuple[float, object]] = []
    network.ask(
        Call(caller, dead, "words", 2.0), 100, lambda _: None, lambda answer: answers.append((clock.now_s, answer))
    )
    clock.run_until(5.0)
    assert answers == [(2.0, None)]
    assert caller.sent == {"words": 100}


def test_messages_wait_for_their_senders_uplink() -> None:
    clock = Clock()
    network = Network(clock, NetworkConfig(latency_s=1e-9, uplink_bytes_per_s=1000.0), seed=0)
    one, other = Host(), Host()
    arrivals: list[float] = []
    for _ in range(2):
        call = Call(one, other, "parts", 10.0)
        network.ask(call, 1000, lambda _: arrivals.append(clock.now_s), lambda _: None)
    clock.run_until(10.0)
    assert arrivals == pytest.approx([1.0, 2.0], abs=1e-6)


def test_real_dht_nodes_answer_with_all_records_whoever_is_asked() -> None:
    record = b"r" * 1500
    run = run_dht(8, record, NetworkConfig(), refresh_s=5.0, ttl_s=60.0, seed=0)
    assert min(run.found) == 8
    searches = len(run.lookup_s) + len(run.store_s)
    # In a small mesh every search asks everybody; some are under way when counting begins and ends.
    assert run.requests["find"] == pytest.approx(searches * 7, rel=0.1)
    # What the model of larger meshes takes for granted: each of these answers brings every record.
    assert run.bytes_sent.total() > run.requests["find"] * 0.9 * answer_bytes(8, record)


def test_every_search_of_a_large_mesh_comes_by_the_same_nodes() -> None:
    lookups = sample_lookups(500, 20, NetworkConfig(), seed=0)
    assert 20 <= lookups.finds < 30
    assert lookups.hottest_ratio == 1.0


def test_a_limit_between_two_sizes_is_found_on_a_line_in_logarithms() -> None:
    loads = [
        {
            "nodes": nodes,
            "value_kb": 1.0 * nodes,
            "sent_kb_per_s": 0.0,
            "hottest_sent_kb_per_s": 0.0,
            "checking_ratio": 0.0,
        }
        for nodes in (10, 100, 10_000)
    ]
    assert limits_of(loads, NetworkConfig())["answer_within_the_timeout"] == 1250


def test_peer_ids_are_real_ones() -> None:
    assert len({peer_named(number) for number in range(100)}) == 100
