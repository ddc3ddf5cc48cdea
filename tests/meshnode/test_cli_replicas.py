"""``experts pull``, ``export`` and ``import``, through a daemon and, where there is none, in the home itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_fake_node import EXPERT, PEER_ID, FakeNode, serving_home
from cli_process import meshnode
from mesh_in_memory import MESH, memory_network, memory_node

from experts.checkpoint import read_safetensors, tensors_from_bytes
from meshnode.errors import ExitCode, ExpertFileRefused, NoSuchPeerOrExpert, Refused
from meshnode.expert_files import expert_to_file
from meshnode.home import Home
from meshnode.lock import DaemonLock
from meshnode.state.state import State
from protocol.identifiers import digest_of
from protocol.limits import MAX_FRAME_BYTES
from protocol.records import ExpertAdvert

CLASSES = ("0", "1")


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(pull_steps=[{"state": "hosted"}])


@pytest.fixture
def home(tmp_path: Path, node: FakeNode) -> Iterator[Home]:
    with serving_home(tmp_path / "home", node) as running:
        yield running


async def kept(folder: Path, name: str) -> tuple[Home, ExpertAdvert, bytes]:
    """A home that keeps one expert and on which nothing runs, and the expert's weights."""
    async with memory_node(memory_network(), name, folder) as made:
        uid = (await made.spawn(*CLASSES)).uid
        await made.learn(uid, seed=4)
        advert = made.host.get(uid).advert()
        return Home(folder / name), advert, made.state.blobs.get(advert.weights)


def test_a_pull_is_ordered_from_the_peer_that_was_named_and_waited_for(home: Home, node: FakeNode) -> None:
    node.pull_steps = [{"state": "waiting"}, {"state": "pulling", "total_bytes": 3_000_000}, {"state": "hosted"}]
    line = ("experts", "pull", "12121", "--from", "quiet-owl")
    ended = meshnode("--home", home.path, "--json", *line)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["schema"] == "meshnode.expert-pull/1"
    assert (ended.document["uid"], ended.document["state"]) == ("12" * 32, "hosted")
    assert node.pulled == [("12" * 32, PEER_ID)]


def test_a_pull_tells_people_how_far_it_is_and_what_it_made(home: Home, node: FakeNode) -> None:
    pulling = {"state": "pulling", "done_bytes": 1_500_000, "total_bytes": 3_000_000}
    node.pull_steps = [*[pulling] * 14, {"state": "hosted"}]
    ended = meshnode("--home", home.path, "experts", "pull", "12")
    assert ended.code == 0
    assert ended.err == "1.5 MB of 3 MB\n"
    assert "is hosted here from now on; it answers for ankle boot, bag" in ended.out
    assert "was hosted here already" in meshnode("--home", home.path, "experts", "pull", EXPERT).out


@pytest.mark.parametrize(
    ("uid", "peer"), [("zz", None), ("", None), ("12", "nobody"), ("12", "")], ids=["uid", "no uid", "peer", "no peer"]
)
def test_who_is_not_there_is_not_pulled(home: Home, node: FakeNode, uid: str, peer: str | None) -> None:
    options = () if peer is None else ("--from", peer)
    ended = meshnode("--home", home.path, "--json", "experts", "pull", uid, *options)
    assert ended.code == ExitCode.NO_SUCH_PEER_OR_EXPERT
    assert ended.document["error"]["code"] == "no_such_peer_or_expert"
    assert node.pulled == []


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("peer_unreachable", ExitCode.NO_SUCH_PEER_OR_EXPERT),
        ("call_timeout", ExitCode.TIMEOUT),
        ("unknown_blob", ExitCode.FAILURE),
        ("failure", ExitCode.FAILURE),
    ],
)
def test_a_failed_pull_ends_as_its_cause_does(home: Home, node: FakeNode, code: str, exit_code: ExitCode) -> None:
    node.pull_steps = [{"state": "failed", "error": {"code": code, "message": "no luck", "hint": None}}]
    ended = meshnode("--home", home.path, "--json", "experts", "pull", "12")
    assert ended.code == exit_code
    assert ended.document["error"] == {"code": code, "message": "no luck", "hint": None}


async def test_export_writes_what_the_daemon_gives_and_never_over_another_file(
    tmp_path: Path, home: Home, node: FakeNode
) -> None:
    _, advert, weights = await kept(tmp_path, "other")
    node.files[EXPERT] = expert_to_file(advert, MESH.mesh_id, digest_of(b"initial"), weights)
    path = tmp_path / "expert.safetensors"
    ended = meshnode("--home", home.path, "--json", "experts", "export", EXPERT[:4], path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["expert"]["uid"] == advert.uid
    assert ended.document["expert"]["generation"] == 2
    assert path.read_bytes() == node.files[EXPERT]
    tensors, metadata = read_safetensors(path.read_bytes())
    assert metadata["mesh"] == MESH.mesh_id
    assert tensors.keys() == tensors_from_bytes(weights)[0].keys()

    path.write_bytes(b"mine")
    ended = meshnode("--home", home.path, "--json", "experts", "export", EXPERT[:4], path)
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.REFUSED, "refused")
    assert "--force" in ended.document["error"]["hint"]
    assert path.read_bytes() == b"mine"
    assert meshnode("--home", home.path, "experts", "export", EXPERT[:4], path, "--force").code == 0
    assert path.read_bytes() == node.files[EXPERT]
    assert meshnode("--home", home.path, "experts", "export", EXPERT, tmp_path / "no" / "folder").code == 1


def test_import_sends_the_file_to_the_daemon_and_tells_its_refusal(tmp_path: Path, home: Home, node: FakeNode) -> None:
    path = tmp_path / "expert.safetensors"
    path.write_bytes(b"some bytes")
    ended = meshnode("--home", home.path, "experts", "import", path, "--replace")
    assert (ended.code, ended.err) == (0, "")
    assert "is hosted here from now on, as generation 4; classes ankle boot, bag" in ended.out
    assert node.imported == [(b"some bytes", True)]
    for failure in (ExpertFileRefused("another mesh"), Refused("it is hosted", hint="--replace")):
        node.failure = failure
        ended = meshnode("--home", home.path, "--json", "experts", "import", path)
        assert ended.code == ExitCode.REFUSED
        assert ended.document["error"] == {"code": failure.code, "message": failure.message, "hint": failure.hint}


def test_import_wants_a_file_that_is_there_and_could_be_an_expert(tmp_path: Path, home: Home, node: FakeNode) -> None:
    assert meshnode("--home", home.path, "experts", "import", tmp_path / "none").code == ExitCode.USAGE
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(MAX_FRAME_BYTES + 1)
    ended = meshnode("--home", home.path, "--json", "experts", "import", path)
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.REFUSED, "expert_file_refused")
    assert node.imported == []


async def test_an_expert_goes_from_one_home_to_another_without_any_daemon(tmp_path: Path) -> None:
    ann, advert, _ = await kept(tmp_path, "ann")
    async with memory_node(memory_network(), "ben", tmp_path):
        pass  # a home of the same mesh, with no experts
    ben, path = Home(tmp_path / "ben"), tmp_path / "expert.safetensors"
    assert meshnode("--home", ann.path, "experts", "export", advert.uid[:8], path).code == 0
    ended = meshnode("--home", ben.path, "--json", "experts", "import", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["expert"]["uid"] == advert.uid
    with State(ben) as state:
        (row,) = state.hosted_experts()
        kept_now = state.current(row.uid)
        assert kept_now is not None
        assert (row.uid, row.classes, kept_now.digest) == (advert.uid, CLASSES, advert.weights)
    ended = meshnode("--home", ben.path, "--json", "experts", "import", path)
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.REFUSED, "refused")
    assert meshnode("--home", ben.path, "experts", "import", path, "--replace").code == 0
    ended = meshnode("--home", ben.path, "--json", "experts", "export", "zz", tmp_path / "zz")
    assert ended.document["error"]["code"] == NoSuchPeerOrExpert.code
    assert not (tmp_path / "zz").exists()


def test_a_folder_that_is_no_home_does_not_become_one(tmp_path: Path) -> None:
    path = tmp_path / "expert.safetensors"
    path.write_bytes(b"some bytes")
    for line in (("import", path), ("export", "ab", tmp_path / "file")):
        ended = meshnode("--home", tmp_path / "none", "--json", "experts", *line)
        assert ended.code == ExitCode.DAEMON_NOT_RUNNING
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_home_that_a_silent_daemon_holds_is_left_alone(tmp_path: Path) -> None:
    home, path = Home(tmp_path / "home"), tmp_path / "expert.safetensors"
    path.write_bytes(b"some bytes")
    with DaemonLock(home), State(home):
        ended = meshnode("--home", home.path, "--json", "experts", "import", path)
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.ALREADY_RUNNING, "already_running")
    ended = meshnode("--home", home.path, "--api", "http://127.0.0.1:9", "--json", "experts", "import", path)
    assert ended.code != 0  # a daemon was named, so the home is not this command's to open


def test_a_replica_is_dropped_by_the_beginning_of_its_uid_and_its_last_one_by_force(home: Home, node: FakeNode) -> None:
    dropped = meshnode("--home", home.path, "experts", "drop", EXPERT[:6])
    assert (dropped.code, dropped.out) == (0, "abababababab is hosted here no more; it answers for ankle boot, bag\n")
    assert meshnode("--home", home.path, "experts", "drop", EXPERT, "--force").code == 0
    assert node.dropped == [(EXPERT, False), (EXPERT, True)]
    node.failure = Refused("no other peer holds a replica", hint="--force")
    refused = meshnode("--home", home.path, "--json", "experts", "drop", EXPERT)
    assert (refused.code, refused.document["error"]["code"]) == (ExitCode.REFUSED, "refused")
    elsewhere = meshnode("--home", home.path, "--json", "experts", "drop", "1212")
    assert elsewhere.code == ExitCode.NO_SUCH_PEER_OR_EXPERT, "it is hosted, but not here"


def test_experts_at_one_node_only_are_warned_of(home: Home, node: FakeNode) -> None:
    assert "one node only" not in meshnode("--home", home.path, "experts", "ls").err
    node.num_holders = 1
    assert "At one node only, and lost with it: abababababab, 121212121212." in (
        meshnode("--home", home.path, "experts", "ls").err
    )
    assert "lost with that node" in meshnode("--home", home.path, "experts", "show", EXPERT).out


def test_stop_says_what_was_taken_over_and_what_was_not(home: Home, node: FakeNode) -> None:
    node.handed_over = {"taken": {EXPERT: "calm-fox"}, "left": ["12" * 32], "reason": "no peer has room"}
    stopped = meshnode("--home", home.path, "stop")
    assert (stopped.code, node.shutdowns) == (0, 1)
    assert "abababababab was taken over by calm-fox" in stopped.out
    assert "121212121212 was not taken over: no peer has room" in stopped.out
    told = meshnode("--home", home.path, "--json", "stop").document["handover"]
    assert (told["left"], told["reason"]) == (["12" * 32], "no peer has room")
