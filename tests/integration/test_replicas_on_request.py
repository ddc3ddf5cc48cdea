"""A user has a replica pulled, takes it out as a file and puts it in elsewhere: real daemons, the real command."""

from pathlib import Path

import pytest
from cli_process import meshnode
from integration_nodes import Daemon, Daemons, complaints, found, save_shard, shards

pytestmark = pytest.mark.integration


def _has_learned(node: Daemon) -> bool:
    status = node.status()
    return bool(status["training"]["learned"] == ["task"] and status["training"]["state"] == "idle")


def _knows_two_replicas(node: Daemon) -> bool:
    return [len(expert["replicas"]) for expert in node.experts()] == [2]


def test_a_replica_is_pulled_exported_and_imported_by_the_command(daemons: Daemons, tmp_path: Path) -> None:
    ann = daemons.make("ann", data=tmp_path / "data", env={"MESHNODE_NET__UP": "1MB/s"})
    save_shard(tmp_path / "data", "task", shards(2)[0], ("0", "1"))
    found(ann.home, tmp_path / "data" / "task.npz")
    ann.launch().wait_ready().wait_for(_has_learned, "its task learned")
    ben = daemons.make("ben", join=[ann.address], options=["--no-train"]).launch().wait_ready()
    ben.wait_for(lambda node: node.experts(), "the other's expert")
    (expert,) = ben.experts()
    home, uid = ("--home", ben.home.path, "--json"), expert["uid"]

    pulled = meshnode(*home, "experts", "pull", uid[:8], "--from", "ann")
    assert (pulled.code, pulled.document["state"]) == (0, "hosted"), pulled.err
    for node in (ann, ben):
        node.wait_for(_knows_two_replicas, "both replicas")

    file = tmp_path / "expert.safetensors"
    exported = meshnode(*home, "experts", "export", uid[:8], file)
    assert exported.code == 0, exported.err
    refused = meshnode(*home, "experts", "import", file)
    assert (refused.code, refused.document["error"]["code"]) == (7, "refused")
    replaced = meshnode(*home, "experts", "import", file, "--replace")
    assert replaced.code == 0, replaced.err
    assert replaced.document["expert"]["weights"] == exported.document["expert"]["weights"]

    assert ben.terminate() == 0
    kept = meshnode(*home, "experts", "export", uid[:8], file, "--force")
    assert kept.code == 0, kept.err
    assert kept.document["expert"]["generation"] >= replaced.document["expert"]["generation"]
    for node in (ann, ben):
        assert complaints(node.stderr) == []
