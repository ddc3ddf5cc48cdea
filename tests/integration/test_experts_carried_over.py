"""An expert changes its form in a mesh of real daemons: the peer follows, it can be undone, and no kill loses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import meshnode
from integration_nodes import Daemon, Daemons, complaints, digits_test, found, save_shard, shards

pytestmark = pytest.mark.integration

CLASSES = ("0", "1")
MARGIN = 0.03
SETTINGS = {"MESHNODE_TRAIN__STEPS": "400", "MESHNODE_PRESERVE__MARGIN": str(MARGIN)}


def _has_learned(node: Daemon) -> bool:
    training = node.status()["training"]
    return bool(training["learned"] == ["task"] and training["state"] == "idle")


def _current(node: Daemon) -> dict[str, Any]:
    """The one expert that is current here."""
    (expert,) = [expert for expert in node.experts() if expert["standing"] == "current"]
    return expert


def _accuracy(node: Daemon) -> float:
    test = digits_test(CLASSES, 60)
    said = node.infer(test.images)
    assert said["missing_mass"] == [0.0] * len(test)
    return float(np.mean([one == other for one, other in zip(said["predictions"], test.labels, strict=True)]))


def _founded(daemons: Daemons, folder: Path, **settings: Any) -> Daemon:
    data = folder / "ann data"
    save_shard(data, "task", shards(2)[0], CLASSES)
    node = daemons.make("ann", data=data, env=SETTINGS, **settings)
    found(node.home, data / "task.npz")
    return node.launch().wait_ready().wait_for(_has_learned, "its task learned", within_s=60)


def test_a_peer_follows_a_new_form_and_each_goes_back_by_itself(daemons: Daemons, tmp_path: Path) -> None:
    ann = _founded(daemons, tmp_path)
    save_shard(tmp_path / "ben data", "task", shards(2)[1], CLASSES)
    ben = daemons.make("ben", data=tmp_path / "ben data", env=SETTINGS, join=[ann.address])
    ben.launch().wait_ready().wait_for(_has_learned, "its task learned", within_s=60)
    first, before = _current(ann), _accuracy(ben)
    assert before > 0.9

    line = [first["uid"]]
    for form in (("mlp", "--set", "hidden=16"), ("deep", "--set", "layers=2", "--steps", "50")):
        command = ("experts", "migrate", line[-1][:12], "--to", *form)
        migrated = meshnode("--home", ann.home.path, "--json", *command)
        assert migrated.code == 0, (migrated.out, migrated.err)
        assert migrated.document["accuracy"]["new"] >= migrated.document["accuracy"]["old"] - MARGIN
        line.append(migrated.document["successor"])
        for node in (ann, ben):
            node.wait_for(lambda node: _current(node)["uid"] == line[-1], "the new form")
            assert _current(node)["kind"] == form[0]
            assert _accuracy(node) >= before - MARGIN
    assert ben.status()["experts"] == {"local": 1, "retired": 2, "mesh": 1, "left_out": []}

    told = meshnode("--home", ben.home.path, "--json", "experts", "lineage", line[-1][:12])
    assert [made["uid"] for made in told.document["experts"]] == line
    assert {made["peer_name"] for made in told.document["experts"][1:]} == {"ann"}

    # One that hosts nothing is told the same, and can carry nothing over.
    cyd = daemons.make("cyd", env=SETTINGS, join=[ann.address]).launch().wait_ready()
    cyd.wait_for(lambda node: any(expert["uid"] == line[-1] for expert in node.experts()), "the records")
    asked = meshnode("--home", cyd.home.path, "--json", "experts", "lineage", line[-1][:12])
    assert asked.document["experts"] == told.document["experts"]
    refused = meshnode("--home", cyd.home.path, "--json", "experts", "migrate", line[-1][:12], "--to", "linear")
    assert refused.code == 7
    assert "not hosted here" in refused.document["error"]["message"]

    # Ben goes back to the first, by way of the second, and stays there although ann has not.
    for uid in reversed(line[1:]):
        rolled = meshnode("--home", ben.home.path, "--json", "experts", "rollback", uid[:12])
        assert rolled.code == 0, rolled.err
    assert _current(ben)["uid"] == first["uid"]
    assert _accuracy(ben) >= before - MARGIN
    assert _current(ann)["uid"] == line[-1]

    for node in (cyd, ben, ann):  # the others joined by ann, and would miss her
        assert node.terminate() == 0
        assert complaints(node.stderr) == []
    ben.launch().wait_ready()
    assert _current(ben)["uid"] == first["uid"]


@pytest.mark.parametrize("killed", ["daemon", "trainer"])
def test_a_kill_in_the_middle_leaves_the_old_form_serving(daemons: Daemons, tmp_path: Path, killed: str) -> None:
    node = _founded(daemons, tmp_path)
    before, accuracy = _current(node), _accuracy(node)
    asked = {"to": {"kind": "mlp", "settings": {"hidden": 16}}, "steps": 100_000}
    path = f"experts/{before['uid']}/migrate"
    assert node.post(path, asked)["state"] == "waiting"
    node.wait_for(lambda node: node.get(path)["state"] == "distilling", "it distils")
    if killed == "daemon":
        node.kill()
        node.launch().wait_ready()
    else:
        node.children()["trainer"].kill()
        node.wait_for(lambda node: node.get(path)["state"] == "failed", "its failure")
    assert _current(node)["replicas"] == before["replicas"]
    assert _accuracy(node) == accuracy
    node.wait_for(_has_learned, "the trainer is back")
    again = meshnode("--home", node.home.path, "experts", "migrate", before["uid"], "--to", "mlp", "--set", "hidden=16")
    assert again.code == 0, again.err
    assert _current(node)["ancestors"] == [before["uid"]]
    assert "Traceback" not in node.stderr
