"""Commands that talk to the daemon: documents for programs, tables for people, and how they fail."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from api_fake_node import EXPERT, KEY, PEER_ID, FakeNode, serving_home
from cli_process import meshnode
from PIL import Image

from experts.router.specialization import Specialization
from meshnode.home import DaemonNote, Home
from protocol.errors import Busy, CallTimeout, NoRoute, RowsUnanswered
from protocol.identifiers import ExpertUid, PeerId


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def home(tmp_path: Path, node: FakeNode) -> Iterator[Home]:
    with serving_home(tmp_path / "home", node) as running:
        yield running


@pytest.fixture
def image_npy(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4))
    return path


@pytest.mark.parametrize(
    ("line", "schema"),
    [
        ("status", "meshnode.status/1"),
        ("id", "meshnode.id/1"),
        ("peers ls", "meshnode.peers/1"),
        ("experts ls", "meshnode.experts/1"),
        (f"experts show {EXPERT}", "meshnode.expert/1"),
        ("version", "meshnode.version/1"),
    ],
)
def test_json_is_one_document_on_stdout_and_silence_on_stderr(home: Home, line: str, schema: str) -> None:
    for arguments in (["--json", *line.split()], [*line.split(), "--json"]):
        ended = meshnode("--home", home.path, *arguments)
        assert (ended.code, ended.err) == (0, "")
        assert ended.document["schema"] == schema


def test_status_tells_people_state_reason_and_every_address(home: Home) -> None:
    ended = meshnode("--home", home.path, "status")
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in ended.out.splitlines()}
    assert "waiting (no peers yet)" in lines["state"]
    assert "cpu (no GPU was found)" in lines["device"]
    assert "failed (connection refused)" in lines["bootstrap"]
    assert "/ip4/192.0.2.1/tcp/4001" in ended.out
    assert "1 here, 3 in the mesh" in lines["experts"]
    assert "learning, task task-0, step 7, loss 0.25" in lines["training"]
    assert "rounds 4, next in 1 min 5 s" in lines["averaging"]
    assert lines["serving"].endswith("  queue 3")
    assert lines["mqtt"].endswith("  connected, 2 messages dropped")
    assert "1.23 MB sent, 10 B received" in lines["traffic"]
    assert "1 h 2 min" in lines["uptime"]


def test_piped_tables_are_neither_coloured_nor_folded_nor_padded(home: Home) -> None:
    for line in ("status", "peers ls", "experts ls"):
        ended = meshnode("--home", home.path, *line.split())
        assert "\x1b" not in ended.out
        assert all(text == text.rstrip() for text in ended.out.splitlines())
    assert any(
        "quiet-owl" in row and PEER_ID in row for row in meshnode("--home", home.path, "peers", "ls").out.splitlines()
    )


def test_colours_appear_on_a_terminal_unless_turned_off(home: Home) -> None:
    def on_a_terminal(*options: str, **env: str) -> bytes:
        ours, theirs = os.openpty()
        command = [sys.executable, "-m", "meshnode", "--home", str(home.path), *options, "peers", "ls"]
        silent = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        with subprocess.Popen(
            command, stdout=theirs, stderr=theirs, env=silent | {"TERM": "xterm-256color"} | env
        ) as process:
            os.close(theirs)
            shown = b""
            try:
                while part := os.read(ours, 4096):
                    shown += part
            except OSError:
                pass  # how a pty says that its other end closed
            assert process.wait() == 0, shown
        os.close(ours)
        return shown

    coloured = on_a_terminal()
    assert b"\x1b[" in coloured
    assert b"\x1b[3" not in on_a_terminal("--no-color")
    assert b"\x1b[3" not in on_a_terminal(NO_COLOR="1")


def test_a_peers_name_cannot_steer_the_terminal(home: Home, node: FakeNode) -> None:
    node.peer_name = "\x1b]0;owned\x07[bold]\u202eevil"
    ended = meshnode("--home", home.path, "peers", "ls")
    assert ended.code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.out)
    assert "[bold]" in ended.out
    as_json = meshnode("--home", home.path, "--json", "peers", "ls")
    assert as_json.out.isascii()
    assert as_json.document["peers"][1]["name"] == node.peer_name


def test_experts_are_narrowed_to_the_local_ones_on_request(home: Home) -> None:
    assert len(meshnode("--home", home.path, "--json", "experts", "ls").document["experts"]) == 2
    assert len(meshnode("--home", home.path, "--json", "experts", "ls", "--mesh").document["experts"]) == 2
    assert len(meshnode("--home", home.path, "--json", "experts", "ls", "--local").document["experts"]) == 1
    shown = meshnode("--home", home.path, "experts", "ls", "--local").out
    assert EXPERT[:12] in shown
    assert "ankle boot, bag" in shown
    assert "quiet-owl (3)" in shown


def test_infer_sends_the_pixels_and_the_options(home: Home, node: FakeNode, image_npy: Path) -> None:
    options = ["--top-k", 2, "--task", "task-1", "--timeout", 1.5]
    ended = meshnode("--home", home.path, "--json", "infer", "--input", image_npy, *options)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["predictions"] == ["bag", "bag"]
    ((images, top_k, task, timeout_s),) = node.asked
    np.testing.assert_array_equal(images, np.load(image_npy))
    assert (top_k, task, timeout_s) == (2, "task-1", 1.5)


def test_infer_explains_itself_when_asked(home: Home, image_npy: Path) -> None:
    plain = meshnode("--home", home.path, "infer", "--input", image_npy)
    assert plain.out.splitlines()[1].split() == ["0", "bag", "0.750", "0.125"]
    assert EXPERT[:12] not in plain.out
    explained = meshnode("--home", home.path, "infer", "--input", image_npy, "--explain")
    assert explained.out.count(EXPERT[:12]) == 2
    assert "calm-fox" in explained.out
    assert "0.875" in explained.out


def test_infer_reads_every_kind_of_file_and_stdin(home: Home, node: FakeNode, tmp_path: Path) -> None:
    grey_HW = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colour_HWC = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.save(tmp_path / "one.npy", grey_HW)
    np.savez(tmp_path / "task.npz", images=grey_HW[None], labels=np.array(["bag"]))
    Image.fromarray(grey_HW).save(tmp_path / "grey.png")
    Image.fromarray(colour_HWC).save(tmp_path / "colour.png")
    Image.fromarray(colour_HWC).save(tmp_path / "colour.jpg")
    Image.fromarray(grey_HW).convert("P").save(tmp_path / "palette.png")
    for name in ("one.npy", "task.npz", "grey.png", "colour.png", "colour.jpg", "palette.png"):
        assert meshnode("--home", home.path, "infer", "--input", tmp_path / name).code == 0, name
    stdin = (tmp_path / "colour.png").read_bytes()
    assert meshnode("--home", home.path, "infer", "--input", "-", stdin=stdin).code == 0
    seen = [images for images, *_ in node.asked]
    for grey in seen[:3]:
        np.testing.assert_array_equal(grey, grey_HW[None])
    np.testing.assert_array_equal(seen[3], colour_HWC[None])
    assert seen[4].shape == seen[5].shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(seen[6], colour_HWC[None])


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _png(mode: str, pixels: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (pixels, pixels)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no .npy, .npz, PNG or JPEG"),
        (b"GIF89a, or so it says", "no .npy, .npz, PNG or JPEG"),
        (b"\x93NUMPY\x01\x00\x09\x00'unclosed", "cannot be used"),
        (b"PK\x03\x04 and nothing", "cannot be used"),
        (_npy(np.zeros((1, 4, 4))), "uint8"),
        (_npy(np.zeros((0, 4, 4), np.uint8)), "shape"),
        (_npy(np.zeros(4, np.uint8)), "shape"),
        (_npy(np.array([object()])), "cannot be used"),
        (_npy(np.zeros((1, 4, 4), np.uint8))[:-3], "cannot be used"),
        (_png("RGB", 64)[:-20], "cannot be used"),
        (_png("I;16"), "8 bits"),
        (_npy(np.zeros((2000, 200, 200), np.uint8)), "in parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_infer_says_what_is_wrong_with_a_file(home: Home, node: FakeNode, content: bytes, complaint: str) -> None:
    ended = meshnode("--home", home.path, "infer", "--input", "-", stdin=content)
    assert (ended.code, ended.out) == (2, "")
    assert complaint in ended.err
    assert "Traceback" not in ended.err
    assert node.asked == []


def test_a_file_that_is_not_there_is_an_absent_resource(home: Home, tmp_path: Path) -> None:
    ended = meshnode("--home", home.path, "--json", "infer", "--input", tmp_path / "none.png")
    assert ended.code == 11
    assert ended.document["error"]["code"] == "resource_absent"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NoRoute(classes=("bag",)), 8),
        (RowsUnanswered((0,), (ExpertUid(EXPERT),)), 9),
        (CallTimeout(PeerId(PEER_ID), "forward", 5.0), 9),
        (Busy(1.0), 1),
        (ZeroDivisionError("a bug of the node"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_daemon_refuses_decides_the_exit_code(
    home: Home, node: FakeNode, image_npy: Path, failure: Exception, code: int
) -> None:
    node.failure = failure
    as_json = meshnode("--home", home.path, "--json", "infer", "--input", image_npy)
    assert (as_json.code, as_json.err) == (code, "")
    error = as_json.document["error"]
    assert set(error) == {"code", "message", "hint"}
    for_people = meshnode("--home", home.path, "infer", "--input", image_npy)
    assert (for_people.code, for_people.out) == (code, "")
    assert for_people.err.startswith(f"error: {error['message']}\n")
    assert (f" hint: {error['hint']}\n" in for_people.err) == (error["hint"] is not None)


@pytest.mark.parametrize("line", ["status", "peers ls", "experts ls", "infer --input -"])
def test_without_a_daemon_the_code_is_four_and_the_hint_is_to_run_one(tmp_path: Path, line: str) -> None:
    ended = meshnode("--home", tmp_path, "--json", *line.split())
    assert (ended.code, ended.err) == (4, "")
    assert ended.document["error"]["code"] == "daemon_not_running"
    assert "meshnode run" in ended.document["error"]["hint"]
    assert list(tmp_path.iterdir()) == []


def test_a_note_left_by_a_dead_daemon_is_not_believed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home.write_daemon_note(DaemonNote(dead.pid, "http://127.0.0.1:9"))
    assert meshnode("--home", tmp_path, "status").code == 4
    home.daemon_json.write_bytes(b"{half a no")
    assert meshnode("--home", tmp_path, "status").code == 4


def test_a_port_that_others_took_over_is_no_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.api_key.write_text(KEY)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    home.write_daemon_note(DaemonNote(os.getpid(), f"http://127.0.0.1:{port}"))
    ended = meshnode("--home", tmp_path, "status")
    assert ended.code == 4
    assert f"127.0.0.1:{port}" in ended.err
    for url in ("ftp://127.0.0.1:1", "nonsense", "http://[", "http://127.0.0.1:99999999"):
        assert meshnode("--home", tmp_path, "--api", url, "status").code == 4, url


def test_the_api_option_names_another_daemon_and_the_homes_key_is_used(home: Home, tmp_path: Path) -> None:
    note = home.read_daemon_note()
    assert note is not None
    stranger = Home(tmp_path / "stranger")
    stranger.create()
    refused = meshnode("--home", stranger.path, "--api", note.url, "--json", "status")
    assert (refused.code, refused.document["error"]["code"]) == (7, "refused")
    stranger.api_key.write_text("another-key-than-the-nodes\n")
    refused = meshnode("--home", stranger.path, "--api", note.url, "--json", "status")
    assert (refused.code, refused.document["error"]["code"]) == (7, "refused")
    stranger.api_key.write_text(KEY)
    assert meshnode("status", "--api", note.url + "/", "--home", stranger.path).code == 0


def test_proxies_of_the_environment_are_not_asked_for_loopback(home: Home) -> None:
    nowhere = "http://127.0.0.1:9"
    env = {"http_proxy": nowhere, "HTTP_PROXY": nowhere, "all_proxy": nowhere}
    assert meshnode("--home", home.path, "status", env=env).code == 0


def test_the_home_may_come_from_the_environment(home: Home) -> None:
    assert meshnode("status", env={"MESHNODE_HOME": str(home.path)}).code == 0


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "status extra",
        "peers",
        "peers nonsense",
        "infer",
        "infer --input x --top-k 0",
        "status --nonsense",
        "--home",
    ],
)
def test_usage_errors_are_code_two_in_the_form_asked_for(line: str) -> None:
    for_people = meshnode(*line.split())
    assert (for_people.code, for_people.out) == (2, "")
    assert for_people.err.startswith("error: ")
    assert "--help" in for_people.err
    as_json = meshnode("--json", *line.split())
    assert (as_json.code, as_json.err) == (2, "")
    assert as_json.document["error"]["code"] == "usage"


def test_no_arguments_and_help_show_the_commands() -> None:
    bare, helped = meshnode(), meshnode("--help")
    assert (bare.code, bare.err) == (helped.code, helped.err) == (0, "")
    assert bare.out == helped.out
    for command in ("init", "run", "demo", "status", "peers", "experts", "infer", "id", "version"):
        assert f"\n  {command} " in helped.out


def test_the_installed_command_is_the_module() -> None:
    script = Path(sys.executable).parent / "meshnode"
    ended = subprocess.run([script, "--json", "version"], capture_output=True, check=True)
    assert json.loads(ended.stdout) == meshnode("--json", "version").document


def measured() -> dict[str, object]:
    return Specialization(
        classes=("ankle boot", "bag", "shirt"),
        uids=("12" * 32, EXPERT),
        mass_CE=torch.tensor([[0.0, 30.0], [0.0, 10.0], [20.0, 0.0]], dtype=torch.float64),
        num_samples_C=torch.tensor([40, 10, 20]),
    ).to_dict()


def test_an_expert_is_shown_with_its_form_and_the_classes_that_send_it_gates(home: Home, node: FakeNode) -> None:
    node.measured = measured()
    for uid in (EXPERT, EXPERT[:6]):
        ended = meshnode("--home", home.path, "experts", "show", uid)
        assert (ended.code, ended.err) == (0, "")
        assert "mlp: feature_dim 640, hidden 8, input_scale 0.3" in ended.out
        assert "ankle boot 75.0%, bag 25.0%" in ended.out
        assert "66.7% of the gate mass" in ended.out
        assert "0.562 nats" in ended.out  # -3/4 log 3/4 - 1/4 log 1/4
        (row,) = [line.split() for line in ended.out.splitlines() if line.startswith("ankle boot")]
        assert row == ["ankle", "boot", "40", "0.0", "75.0"]
    document = meshnode("--home", home.path, "--json", "experts", "show", EXPERT).document
    assert document["specialization"]["class_share_ratio"] == {"ankle boot": 0.75, "bag": 0.25}
    assert document["mesh"] == node.measured


def test_an_expert_without_gates_says_so_and_cannot_be_drawn(home: Home, node: FakeNode, tmp_path: Path) -> None:
    ended = meshnode("--home", home.path, "experts", "show", EXPERT)
    assert ended.code == 0
    assert "not measured yet" in ended.out
    drawn = meshnode("--home", home.path, "--json", "experts", "show", EXPERT, "--plot", tmp_path / "x.png")
    assert (drawn.code, drawn.document["error"]["code"]) == (11, "resource_absent")
    node.measured = Specialization(
        classes=("bag",),
        uids=(EXPERT,),
        mass_CE=torch.zeros(1, 1, dtype=torch.float64),
        num_samples_C=torch.tensor([3]),
    ).to_dict()
    idle = meshnode("--home", home.path, "experts", "show", EXPERT)
    assert "nothing is sent to it" in idle.out
    assert idle.code == 0


def test_the_heat_map_is_drawn_for_all_experts(home: Home, node: FakeNode, tmp_path: Path) -> None:
    node.measured = measured()
    path = tmp_path / "map.png"
    ended = meshnode("--home", home.path, "experts", "show", EXPERT, "--plot", path)
    assert (ended.code, ended.err) == (0, "")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    nowhere = meshnode("--home", home.path, "experts", "show", EXPERT, "--plot", tmp_path / "no" / "x.png")
    assert nowhere.code == 11
    assert "cannot be written" in nowhere.err


@pytest.mark.parametrize("uid", ["ff", "", EXPERT + "0"])
def test_no_single_expert_of_that_uid_is_an_error(home: Home, uid: str) -> None:
    assert meshnode("--home", home.path, "experts", "show", uid).code == 8
