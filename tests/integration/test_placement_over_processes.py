"""A mesh of real daemons keeps its experts: one dies, one leaves, one drops, and others take over."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cli_process import meshnode
from integration_nodes import Daemon, Daemons, digits_test, found, save_shard, shards

pytestmark = pytest.mark.integration

PLACING: Mapping[str, str] = {
    "MESHNODE_PLACE__ENABLED": "true",
    "MESHNODE_PLACE__HANDOVER": "20s",
    "MESHNODE_NET__RECORD_TTL": "6s",
}
CLASSES = ("0", "1")


def holders(node: Daemon) -> set[str]:
    """Names of those that hold the mesh's one expert, as this node sees it."""
    return {replica["name"] for expert in node.experts() for replica in expert["replicas"]}


def learned_by_ann(daemons: Daemons, folder: Path, env: Mapping[str, str]) -> Daemon:
    """A founder that has learned one task, alone."""
    ann = daemons.make("ann", data=folder / "data", env=env)
    save_shard(folder / "data", "task", shards(2)[0], CLASSES)
    found(ann.home, folder / "data" / "task.npz")
    return ann.launch().wait_ready().wait_for(lambda node: node.status()["training"]["learned"] == ["task"], "its task")


def test_one_of_two_holders_is_killed_and_a_third_node_adopts(daemons: Daemons, tmp_path: Path) -> None:
    ann = learned_by_ann(daemons, tmp_path, PLACING)
    assert "no other peer" in ann.status()["placement"]["short"][0]["reason"]
    others = [
        daemons.make(name, join=[ann.address], options=["--no-train"], env=PLACING).launch() for name in ("ben", "cem")
    ]
    for node in others:
        node.wait_ready()
    ann.wait_for(lambda node: len(holders(node)) == 2, "a second replica")
    (adopted,) = [node for node in others if node.name in holders(ann)]
    (third,) = [node for node in others if node is not adopted]
    assert adopted.experts()[0]["placed"]
    assert ann.status()["placement"]["short"] == []

    ann.kill()
    third.wait_for(lambda node: holders(node) == {adopted.name, third.name}, "the third to adopt")

    uid = third.experts()[0]["uid"]
    dropped = meshnode("--home", third.home.path, "--json", "experts", "drop", uid[:8])
    assert dropped.code == 0, dropped.err
    adopted.wait_for(lambda node: holders(node) == {adopted.name}, "one holder")
    last = meshnode("--home", adopted.home.path, "--json", "experts", "drop", uid[:8])
    assert (last.code, last.document["error"]["code"]) == (7, "refused"), last.err


def test_a_node_that_stops_hands_over_what_only_it_holds(daemons: Daemons, tmp_path: Path) -> None:
    # One replica is enough for this mesh: nobody adopts until the only one is about to go.
    env = {**PLACING, "MESHNODE_PLACE__REPLICAS": "1"}
    ann = learned_by_ann(daemons, tmp_path, env)
    ben = daemons.make("ben", join=[ann.address], options=["--no-train"], env=env).launch().wait_ready()
    ben.wait_for(lambda node: holders(node) == {"ann"} and node.status()["router"]["contributions"], "the mesh")
    ann.wait_for(lambda node: len(node.get("peers")["peers"]) == 2, "the other")
    (uid,) = (expert["uid"] for expert in ben.experts())
    images = digits_test(CLASSES, 20).images
    before = ben.infer(images)["outputs"]

    stopped = meshnode("--home", ann.home.path, "--json", "stop")
    assert stopped.code == 0, stopped.err
    assert stopped.document["handover"] == {"taken": {uid: "ben"}, "left": [], "reason": None}
    assert holders(ben) == {"ben"}
    after = ben.infer(images)
    np.testing.assert_allclose(after["outputs"], before, atol=1e-5)
    assert {entry["peer_name"] for entry in after["route"]} == {"self"}

    gone = meshnode("--home", ben.home.path, "stop")
    assert f"{uid[:12]} was not taken over: there is no other peer in the mesh" in gone.out
    assert "handover incomplete" in ben.stderr
