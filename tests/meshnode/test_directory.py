"""The directory believes what records prove, for as long as they hold."""

import asyncio

import msgspec
import pytest
from mesh_in_memory import MESH, form, key_of, memory_network

from meshnode.directory import Directory
from meshnode.telemetry import Telemetry
from meshnode.transport.memory import MemoryNetwork
from protocol.codec import encode
from protocol.errors import RecordRefusal, RecordRefused
from protocol.identifiers import ExpertUid, MeshId, digest_of
from protocol.records import ExpertAdvert, PeerRecord, record_key, seal_record
from protocol.signing import SigningKey, seal

A, B, C = key_of("a"), key_of("b"), key_of("c")
KEY = record_key(MESH.mesh_id)
FIRST, SECOND = sorted(ExpertUid(digest_of(name)) for name in (b"first", b"second"))


def advert(uid: ExpertUid, *classes: str, generation: int = 1) -> ExpertAdvert:
    weights = digest_of(f"{uid}/{generation}".encode())
    return ExpertAdvert(
        uid=uid, form=MESH.spec.expert, classes=classes, since=0.0, round=0, generation=generation, weights=weights
    )


def record(
    key: SigningKey,
    network: MemoryNetwork,
    *experts: ExpertAdvert,
    ttl_s: float = 60.0,
    leaving: bool = False,
    mesh_id: MeshId = MESH.mesh_id,
) -> PeerRecord:
    return PeerRecord(
        mesh_id=mesh_id,
        peer_id=key.peer_id,
        peer_name={A: "a", B: "b", C: "c"}[key],
        issued_at=network.now_s,
        expires_at=network.now_s + ttl_s,
        leaving=leaving,
        experts=experts,
        contributions=None,
    )


async def publish(network: MemoryNetwork, key: SigningKey, content: PeerRecord) -> None:
    stored = network.join(key.peer_id)
    assert await stored.publish(KEY, key.peer_id, seal_record(content, key), expires_at=content.expires_at)


def directory_on(network: MemoryNetwork) -> Directory:
    reader = network.join(key_of("reader").peer_id)
    return Directory(reader, MESH.mesh_id, refresh_s=60.0, objection=lambda advert: None)


async def test_replicas_of_an_expert_are_listed_together_and_experts_in_uid_order() -> None:
    network = memory_network()
    directory = directory_on(network)
    await publish(network, A, record(A, network, advert(SECOND, "2"), advert(FIRST, "0", "1")))
    await publish(network, B, record(B, network, advert(FIRST, "0", "1", generation=7)))
    assert not directory.experts()
    await directory.refresh()
    listings = directory.experts()
    assert list(listings) == [FIRST, SECOND]
    assert listings[FIRST].classes == ("0", "1")
    found = {replica.peer_id: replica for replica in listings[FIRST].replicas}
    assert found.keys() == {A.peer_id, B.peer_id}
    assert (found[B.peer_id].peer_name, found[B.peer_id].advert.generation) == ("b", 7)
    assert [replica.peer_id for replica in listings[SECOND].replicas] == [A.peer_id]


async def test_one_bad_record_does_not_hide_the_others() -> None:
    network = memory_network()
    directory = directory_on(network)
    hostile = network.join(C.peer_id)
    expires_at = network.now_s + 60
    forged = seal(C, "record", encode(record(B, network)))
    foreign = seal_record(record(C, network, mesh_id=MeshId(digest_of(b"other"))), C)
    for subkey, value in (
        (B.peer_id, forged),
        (C.peer_id, foreign),
        ("no peer id", foreign),
        (key_of("d").peer_id, b"garbage"),
    ):
        assert await hostile.publish(KEY, subkey, value, expires_at=expires_at)
    await publish(network, A, record(A, network))
    await directory.refresh()
    assert [live.peer_id for live in directory.records()] == [A.peer_id]


async def test_a_peer_is_gone_when_its_lease_ends_or_it_says_that_it_leaves() -> None:
    network = memory_network()
    directory = directory_on(network)
    await publish(network, A, record(A, network, advert(FIRST, "0"), ttl_s=10))
    await publish(network, B, record(B, network, advert(FIRST, "0"), ttl_s=60))
    await directory.refresh()
    assert len(directory.records()) == 2
    network.now_s += 10
    assert [live.peer_id for live in directory.records()] == [B.peer_id]
    await publish(network, B, record(B, network, leaving=True))
    await directory.refresh()
    assert directory.records() == ()
    assert not directory.experts()


async def test_what_a_leaving_peer_hands_over_is_listed_until_another_one_has_it() -> None:
    network = memory_network()
    directory = directory_on(network)
    await publish(network, A, record(A, network, advert(FIRST, "0"), advert(SECOND, "1"), leaving=True))
    await publish(network, B, record(B, network, advert(SECOND, "1")))
    await directory.refresh()
    assert [live.peer_id for live in directory.records()] == [B.peer_id]
    listings = directory.experts()
    assert [(held.peer_id, held.leaving) for held in listings[FIRST].replicas] == [(A.peer_id, True)]
    assert [(held.peer_id, held.leaving) for held in listings[SECOND].replicas] == [(B.peer_id, False)]
    assert (listings[FIRST].holders, listings[SECOND].holders) == (set(), {B.peer_id})
    network.now_s += 1
    await publish(network, B, record(B, network, advert(FIRST, "0"), advert(SECOND, "1")))
    await directory.refresh()
    assert directory.experts()[FIRST].holders == {B.peer_id}


async def test_peers_that_come_and_go_are_told_of_and_the_node_itself_is_not() -> None:
    network, heard = memory_network(), list[tuple[str, object]]()
    telemetry = Telemetry()
    telemetry.events.listen(lambda event: heard.append((event.kind, event.facts["name"])))
    transport = network.join(C.peer_id)
    directory = Directory(transport, MESH.mesh_id, refresh_s=60.0, objection=lambda advert: None, telemetry=telemetry)
    await publish(network, A, record(A, network, ttl_s=10))
    await publish(network, C, record(C, network))
    await directory.refresh()
    await directory.refresh()
    assert heard == [("peer_joined", "a")]
    network.now_s += 10
    await directory.refresh()
    assert heard == [("peer_joined", "a"), ("peer_left", "a")]


async def test_adverts_are_judged_once_and_again_when_a_record_changes() -> None:
    network, judged = memory_network(), list[ExpertAdvert]()

    def objection(advert: ExpertAdvert) -> str | None:
        judged.append(advert)
        return "too new" if advert.generation == 2 else None

    transport = network.join(key_of("reader").peer_id)
    directory = Directory(transport, MESH.mesh_id, refresh_s=60.0, objection=objection)
    await publish(network, A, record(A, network, advert(FIRST, "0")))
    await directory.refresh()
    assert list(directory.experts()) == list(directory.experts()) == [FIRST]
    assert len(judged) == 1
    network.now_s += 1
    await publish(network, A, record(A, network, advert(FIRST, "0", generation=2)))
    await directory.refresh()
    assert not directory.experts()
    assert [(entry.uid, entry.peer_name, entry.reason) for entry in directory.left_out()] == [(FIRST, "a", "too new")]


async def test_the_record_before_the_last_cannot_be_played_again() -> None:
    network = memory_network()
    directory = directory_on(network)
    old = seal_record(record(A, network, advert(FIRST, "0")), A)
    directory.take(old, A.peer_id)
    network.now_s += 1
    new = seal_record(record(A, network, leaving=True), A)
    directory.take(new, A.peer_id)
    with pytest.raises(RecordRefused) as caught:
        directory.take(old, A.peer_id)
    assert caught.value.reason is RecordRefusal.REPLAYED
    directory.take(new, A.peer_id)
    assert directory.records() == ()


async def test_a_record_handed_over_directly_is_checked_like_any_other() -> None:
    network = memory_network()
    directory = directory_on(network)
    with pytest.raises(RecordRefused) as caught:
        directory.take(seal_record(record(A, network), A), B.peer_id)
    assert caught.value.reason is RecordRefusal.WRONG_OWNER
    assert directory.records() == ()


async def test_the_service_looks_at_once_and_again_after_each_interval() -> None:
    network = memory_network()
    directory = Directory(
        network.join(key_of("reader").peer_id), MESH.mesh_id, refresh_s=0.01, objection=lambda advert: None
    )
    await publish(network, A, record(A, network))
    async with asyncio.timeout(5):
        service = asyncio.create_task(directory.run())
        await directory.refreshed.wait()
        assert len(directory.records()) == 1
        await publish(network, B, record(B, network))
        while len(directory.records()) < 2:
            directory.refreshed.clear()
            await directory.refreshed.wait()
        service.cancel()


async def test_an_advert_under_another_experts_uid_does_not_count() -> None:
    network = memory_network()
    genuine_uid = MESH.uid_of(("0", "1"), MESH.spec.expert)
    reader = network.join(key_of("reader").peer_id)
    directory = Directory(reader, MESH.mesh_id, refresh_s=60.0, objection=MESH.objection_to)
    await publish(network, A, record(A, network, advert(genuine_uid, "0", "1")))
    await publish(network, B, record(B, network, advert(genuine_uid, "7", "8")))
    linear = msgspec.structs.replace(advert(genuine_uid, "0", "1"), form=form("linear"))
    await publish(network, C, record(C, network, linear))
    await directory.refresh()
    (listing,) = directory.experts().values()
    assert listing.classes == ("0", "1")
    assert [replica.peer_id for replica in listing.replicas] == [A.peer_id]
