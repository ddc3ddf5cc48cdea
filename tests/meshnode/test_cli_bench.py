"""``meshnode bench serve`` as a user meets it, with a client that answers from memory in place of the network."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_fake_node import FakeNode, serving_home
from bench_examples import EXPERT, answer
from cli_process import meshnode, python
from PIL import Image

from experts.errors import MalformedDataset
from meshnode.bench import serve
from meshnode.cli.app import run_line
from meshnode.inference import Prediction
from meshnode.transport.interface import Traffic
from protocol.errors import Busy, ModuleMeshError, NoRoute, NotReady, PeerUnreachable, RowsUnanswered
from protocol.identifiers import ExpertUid, MeshId, PeerId

ADDRESS = "/ip4/192.0.2.7/tcp/4001/p2p/QmSomebody"
SHORT = ("--rate", "100", "--duration", "400ms", "--warm-up", "100ms")


class Named:
    """Something with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class FakeClient:
    """Answers in 2 ms, alternately by ada and by ben, and counts a hundred bytes each way."""

    def __init__(self) -> None:
        self.joined: Sequence[str] = ()
        self.asked: list[tuple[np.ndarray, int | None, float]] = []
        self.failure: Callable[[int], Exception | None] = lambda _number: None
        self.refusal: ModuleMeshError | None = None
        self.traffic = Traffic()
        self.mesh = Named(mesh_id=MeshId("cd" * 32), spec=Named(name="digits"))
        self.hangs: set[int] = set()
        """Requests that are never answered."""
        self.is_closed = False

    async def join(self, addresses: Sequence[str], *, queue: int) -> "FakeClient":
        self.joined = addresses
        if self.refusal is not None:
            raise self.refusal
        return self

    async def __aenter__(self) -> "FakeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_closed = True

    def experts(self) -> Sequence[Any]:
        return [
            Named(uid=ExpertUid(EXPERT), replicas=[Named(peer_id=PeerId("Qm-ada")), Named(peer_id=PeerId("Qm-ben"))])
        ]

    async def predict(self, images: np.ndarray, *, top_k: int | None, timeout_s: float) -> Prediction:
        number = len(self.asked)
        self.asked.append((images, top_k, timeout_s))
        self.traffic.sent["inference"] += 100
        self.traffic.received["inference"] += 100
        await asyncio.sleep(3600 if number in self.hangs else 0.002)
        if (failure := self.failure(number)) is not None:
            raise failure
        return answer((("ada", "ben")[number % 2], len(images), 1.5, None))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(serve, "MeshClient", client)
    monkeypatch.chdir(tmp_path)
    return client


def document_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def test_the_document_has_every_figure_and_stands_beside_the_picture(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("--json", "bench", "serve", "--join", ADDRESS, *SHORT, "--batch", "3", "--top-k", "2", "--timeout", "1s")
    assert run_line([*line, "--seed", "4"]) == 0
    document = document_of(capsys)
    assert document["schema"] == "meshnode.bench_serve/1"
    assert document["mesh"] == {"id": "cd" * 32, "name": "digits", "experts": 1, "replicas": 2, "peers": 2}
    assert document["load"] == {
        "loop": "open",
        "rate_per_s": 100.0,
        "concurrency": 256,
        "duration_s": 0.4,
        "warm_up_s": 0.1,
        "batch": 3,
        "top_k": 2,
        "timeout_s": 1.0,
        "seed": 4,
        "images": "359 from the test part of scikit-learn's digits",
    }
    requests = document["requests"]
    assert requests["offered"] == requests["answered"] == document["latency_ms"]["count"] > 20
    # The first one, before the load, tells whether there is anything to measure.
    assert len(client.asked) == 1 + requests["warm_up"] + requests["offered"]
    assert requests["warm_up"] > 0
    assert (document["answered_ratio"], document["failures"], document["interrupted"]) == (1.0, {}, False)
    assert document["latency_ms"]["p50"] >= 2.0
    assert document["rows_per_s"] == pytest.approx(3 * document["answered_per_s"], rel=1e-3)
    # Those of the warm-up are in no figure.
    assert 0 < document["traffic"]["sent_bytes"] <= 100 * (requests["offered"] + 1)
    assert {peer["name"] for peer in document["peers"]} == {"ada", "ben"}
    assert sum(peer["share"] for peer in document["peers"]) == pytest.approx(1.0)
    assert sum(interval["offered"] for interval in document["intervals"]) == requests["offered"]
    assert client.joined == [ADDRESS]
    assert client.is_closed
    for images, top_k, timeout_s in client.asked:
        assert (images.shape, top_k, timeout_s) == ((3, 8, 8), 2, 1.0)
    assert json.loads((tmp_path / "bench-out" / "serve.json").read_text()) == document
    with Image.open(tmp_path / "bench-out" / "serve.png") as picture:
        assert picture.format == "PNG"


def test_the_table_says_under_what_load_its_percentiles_hold(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    client.failure = lambda number: Busy(1.0) if number > 0 and number % 5 == 0 else None
    assert run_line(["bench", "serve", "--join", ADDRESS, *SHORT, "--out", "some/where"]) == 0
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "open loop at 100/s for 0.4 s, batch 1" in lines["load"]
    assert " busy" in lines["failures"]
    assert "batch 1" in lines["ms"]
    assert "/s offered" in lines["ms"]
    assert {"ada", "ben", "to", "PEER"} <= lines.keys()
    assert "\x1b" not in out + err
    # No terminal, so nothing moves; where the files are is said at the end.
    assert err.splitlines() == ["picture: some/where/serve.png   figures: some/where/serve.json"]
    assert json.loads((tmp_path / "some/where/serve.json").read_text())["failures"].keys() == {"busy"}


def test_quiet_is_the_table_alone(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line(["-q", "bench", "serve", "--join", ADDRESS, *SHORT]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mesh ")
    assert err == ""


def test_concurrency_without_a_rate_is_a_closed_loop_and_with_one_a_bound(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = ("--duration", "300ms", "--warm-up", "0s")
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, "--concurrency", "2", *spans]) == 0
    closed = document_of(capsys)
    assert (closed["load"]["loop"], closed["load"]["rate_per_s"], closed["load"]["concurrency"]) == ("closed", None, 2)
    assert closed["requests"]["warm_up"] == closed["requests"]["not_sent"] == 0
    line = ["--json", "bench", "serve", "--join", ADDRESS, "--concurrency", "1", "--rate", "2000", *spans]
    assert run_line(line) == 0
    bound = document_of(capsys)
    assert (bound["load"]["loop"], bound["load"]["concurrency"]) == ("open", 1)
    requests = bound["requests"]
    assert requests["not_sent"] > requests["answered"] > 0
    assert requests["not_sent"] + requests["answered"] == requests["offered"]
    assert bound["answered_ratio"] == pytest.approx(requests["answered"] / requests["offered"], abs=1e-6)


def test_fifty_a_second_is_asked_for_where_nothing_is_said(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, *SHORT[2:]]) == 0
    load = document_of(capsys)["load"]
    assert (load["loop"], load["rate_per_s"], load["batch"], load["top_k"], load["timeout_s"]) == (
        "open",
        50,
        1,
        None,
        5,
    )


def test_without_an_address_the_daemons_are_taken(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving_home(tmp_path / "home", FakeNode()) as home:
        assert run_line(["--json", "--home", str(home.path), "bench", "serve", *SHORT]) == 0
    assert client.joined == ["/ip4/127.0.0.1/tcp/4001"]


def test_images_of_ones_own_are_asked_about(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.save(tmp_path / "mine.npy", images)
    line = ["--json", "bench", "serve", "--join", ADDRESS, "--input", "mine.npy", "--batch", "2", *SHORT]
    assert run_line(line) == 0
    assert document_of(capsys)["load"]["images"] == "2 from mine.npy"
    asked, _, _ = client.asked[0]
    assert {image.tobytes() for image in asked} == {image.tobytes() for image in images}


def test_ctrl_c_ends_early_with_the_results_so_far(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(number: int) -> None:
        if number == 30:
            os.kill(os.getpid(), signal.SIGINT)

    client.failure = interrupt
    client.hangs = {20, 25}
    line = ["bench", "serve", "--join", ADDRESS, "--rate", "100", "--duration", "60s", "--warm-up", "0s"]
    assert run_line(["--json", *line]) == 130
    document = document_of(capsys)
    assert document["interrupted"] is True
    requests = document["requests"]
    assert requests["answered"] + requests["cut_off"] == requests["offered"] >= 29
    assert requests["cut_off"] >= 2
    assert requests["failed"] == 0
    assert document["window_s"] < 30
    assert json.loads((tmp_path / "bench-out/serve.json").read_text()) == document
    assert (tmp_path / "bench-out/serve.png").exists()
    assert client.is_closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("failure", "code", "error"),
    [
        (NoRoute(), 8, "no_route"),
        (RowsUnanswered((0,), (ExpertUid(EXPERT),)), 9, "rows_unanswered"),
        (NotReady("no router yet"), 1, "not_ready"),
        (MalformedDataset("images", reason="seven channels"), 2, "usage"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_mesh_that_does_not_answer_the_first_request_is_an_error(
    client: FakeClient, capsys: pytest.CaptureFixture[str], failure: Exception, code: int, error: str
) -> None:
    client.failure = lambda _number: failure
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, *SHORT]) == code
    document = document_of(capsys)
    assert document["error"]["code"] == error
    assert len(client.asked) == 1
    assert client.is_closed


def test_a_mesh_that_falls_silent_ends_with_the_figures_and_the_code_of_its_failure(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.failure = lambda number: NoRoute() if number else None
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, *SHORT]) == 8
    document = document_of(capsys)
    assert document["failures"] == {"no_route": document["requests"]["offered"]}
    assert document["latency_ms"]["p50"] is None


def test_an_address_that_nobody_answers_at_is_an_error(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.refusal = PeerUnreachable(PeerId("QmSomebody"))
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, *SHORT]) == 8
    assert document_of(capsys)["error"]["code"] == "peer_unreachable"


def test_a_folder_that_cannot_be_made_is_found_before_the_load(
    client: FakeClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, "--out", "file/below", *SHORT]) == 1
    assert "file/below" in document_of(capsys)["error"]["message"]
    assert client.asked == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--rate", "0"), "--rate"),
        (("--concurrency", "0"), "--concurrency"),
        (("--duration", "soon"), "--duration"),
        (("--duration", "10 parsecs"), "--duration"),
        (("--duration", "0s"), "--duration"),
        (("--duration", "2h"), "--duration"),
        (("--warm-up", "-1s"), "--warm-up"),
        (("--timeout", "0s"), "--timeout"),
        (("--batch", "0"), "--batch"),
        (("--top-k", "0"), "--top-k"),
        (("--seed", "-1"), "--seed"),
        (("--input", __file__), "--input"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    client: FakeClient, capsys: pytest.CaptureFixture[str], options: tuple[str, str], complaint: str
) -> None:
    assert run_line(["--json", "bench", "serve", "--join", ADDRESS, *options]) == 2
    error = document_of(capsys)["error"]
    assert error["code"] == "usage"
    assert complaint in error["message"]
    assert client.asked == []


def test_without_a_daemon_and_an_address_the_code_is_four_and_nothing_is_left_behind(tmp_path: Path) -> None:
    ended = meshnode("--home", tmp_path, "--json", "bench", "serve", "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (4, "")
    assert ended.document["error"]["code"] == "daemon_not_running"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["bench serve --help", "bench --help", "--home {home} --json bench serve"])
def test_nothing_heavy_is_loaded_before_there_is_something_to_measure(tmp_path: Path, line: str) -> None:
    program = """
import sys
from meshnode.cli import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    ended = python(program, *line.format(home=tmp_path).split())
    assert not {"torch", "hivemind", "sklearn", "matplotlib", "numpy"} & set(ended.err.splitlines()[-1].split())
